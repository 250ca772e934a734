#!/bin/bash
# Runs a hot standby of the primary that $PRIMARY names, a connection string. Its first copy is made when there is nothing
# yet; what was copied before, or promoted since, is left as it is. Arguments are those of the server.
set -eu

if [ ! -e "$PGDATA/PG_VERSION" ]; then
    # What fails removes what it has copied so far.
    until pg_basebackup --pgdata "$PGDATA" --write-recovery-conf --checkpoint=fast --dbname "$PRIMARY"; do
        sleep 1
    done
    chmod 700 "$PGDATA"
fi
exec postgres "$@"
