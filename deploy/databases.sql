-- Two databases: Prefect's, and our ledger's (which exists where POSTGRES_DB made it).
CREATE DATABASE prefect;
