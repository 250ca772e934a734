#!/bin/bash
# Prepares the primary of the fleet, once: the image runs this when its volume is new. The roles, and who may replicate.
set -eu

ask=(psql --no-psqlrc --username "$POSTGRES_USER" --dbname "$POSTGRES_DB" --set ON_ERROR_STOP=1)
"${ask[@]}" --file /ops/roles.sql
"${ask[@]}" --set password="$POSTGRES_PASSWORD" <<'SQL'
CREATE ROLE plc_replication LOGIN REPLICATION PASSWORD :'password';
ALTER ROLE plc_owner PASSWORD :'password';
ALTER ROLE plc_follower PASSWORD :'password';
ALTER ROLE plc_reader PASSWORD :'password';
SQL
echo 'host replication plc_replication all scram-sha-256' >>"$PGDATA/pg_hba.conf"
