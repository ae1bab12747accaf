"""One file a revision; the newest is named in `ledger_rows.REVISION`."""
