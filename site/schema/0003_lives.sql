-- Version 3: a life of a server is known to be over by its silence, no longer by what other files are dated.

-- When the life was heard last, by the site's clock.
ALTER TABLE server_life RENAME COLUMN newest TO heard;
