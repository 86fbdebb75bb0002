-- Version 2: what a restore leaves to be done, and what it has to know later.

-- Result files of `done` that were taken in at this time or later are to be taken in again; NULL when there are none.
ALTER TABLE site ADD COLUMN retake_since INTEGER;
-- Device numbers that were passed over: machines that this database does not know may bear them.
ALTER TABLE site ADD COLUMN numbers_skipped INTEGER NOT NULL DEFAULT 0;
