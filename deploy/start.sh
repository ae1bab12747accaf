#!/bin/sh
# Starts one part of a scaled-out gpujobs, in the foreground: `start.sh database`, once, then any number of the others.
#   database      lay out, or migrate, Prefect's database
#   api [PORT]    a Prefect API server with its UI, on $GPUJOBS_API_HOST (127.0.0.1), port 4200
#   services      Prefect's background services: one is enough, and two do no harm
#   host          a host that runs recipes; each wants a GPUJOBS_HOME of its own
# The database and Redis come from the environment: see settings.env and docs/scale.md.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
set -a
. "$here/settings.env"
set +a

role="${1:-}"
case "$role" in
  database | api | services)
    : "${PREFECT_SERVER_DATABASE_CONNECTION_URL:?postgresql+asyncpg://USER:PASSWORD@HOST/prefect}"
    : "${GPUJOBS_REDIS_URL:?redis://HOST:6379/0}"
    export PREFECT_REDIS_MESSAGING_URL="$GPUJOBS_REDIS_URL" PREFECT_SERVER_DOCKET_URL="$GPUJOBS_REDIS_URL"
    export PREFECT_REDIS_WORKER_CLEANUP_QUEUE_URL="$GPUJOBS_REDIS_URL"
    unset AUTODL_TOKEN MATRIXDC_TOKEN # a server needs no cloud's token
    ;;
  host)
    : "${PREFECT_API_URL:?http://HOST:4200/api}"
    : "${GPUJOBS_DATABASE_URL:?postgresql://USER:PASSWORD@HOST/gpujobs}"
    ;;
esac

case "$role" in
  database) prefect server database upgrade -y && exec python "$here/register_blocks.py" ;;
  api) exec prefect server start --no-services --host "${GPUJOBS_API_HOST:-127.0.0.1}" --port "${2:-4200}" ;;
  services) exec prefect server services start ;;
  host) exec gpujobs serve ;;
  *) sed -n '2,7s/^# *//p' "$0" >&2 && exit 2 ;;
esac
