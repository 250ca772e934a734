-- What the upstream stated under the number of the cursor. It need not be what we hold under that
-- number: the line may have been refused, or the number may have been given to something else after
-- the upstream went back. By it the upstream is asked whether it still has the log that was read.
ALTER TABLE sources ADD COLUMN cursor_cid bytea;
