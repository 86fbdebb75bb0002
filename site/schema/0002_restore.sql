-- Version 2: what a restore leaves to be done, and what it has to know later.

-- Result files of `done` that this database does not know, and those that were taken in at this time or later, are to be taken in again; NULL
-- when there are none.
ALTER TABLE site ADD COLUMN retake_since INTEGER;
-- Device numbers below device_next that no device of this database ever got: machines that it does not know may bear them. A set, NULL
-- when there are none, and how many they are.
ALTER TABLE site ADD COLUMN passed_over BLOB;
ALTER TABLE site ADD COLUMN passed_over_count INTEGER NOT NULL DEFAULT 0;
