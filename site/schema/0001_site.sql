-- The site's schema, version 1. Times are milliseconds since 1970; 64-bit numbers from outside that do not fit stay at the far end.
-- Sets of devices are Roaring bitmaps in their portable form.

CREATE TABLE site (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    code TEXT NOT NULL,
    generation BLOB NOT NULL CHECK (length(generation) = 16),
    created INTEGER NOT NULL,
    -- The number that the next device gets; never given twice.
    device_next INTEGER NOT NULL DEFAULT 0,
    -- The version that the last policy document got.
    policy_version INTEGER NOT NULL DEFAULT 0
) STRICT;

CREATE TABLE server (
    number INTEGER PRIMARY KEY CHECK (number > 0),
    address TEXT,
    -- The newest of its lives (server_life.life), 0 for none yet.
    life INTEGER NOT NULL DEFAULT 0,
    last_seen INTEGER,
    -- Presence files: the newest taken in whole, the highest that is missing, when the last came.
    presence_sequence INTEGER NOT NULL DEFAULT 0,
    presence_missing INTEGER,
    presence_heard INTEGER,
    -- The last full online list taken in whole.
    full_life INTEGER NOT NULL DEFAULT 0,
    full_sequence INTEGER NOT NULL DEFAULT 0,
    full_time INTEGER,
    silent INTEGER NOT NULL DEFAULT 0 CHECK (silent IN (0, 1)),
    -- Devices of a silent server that are still to be shown as unknown.
    unknown_due INTEGER NOT NULL DEFAULT 0 CHECK (unknown_due IN (0, 1))
) STRICT;

-- The lives of a server in their order. A counter alone does not order them: a restored disk counts from an earlier value again.
CREATE TABLE server_life (
    server INTEGER NOT NULL REFERENCES server (number),
    counter INTEGER NOT NULL,
    nonce INTEGER NOT NULL,
    life INTEGER NOT NULL,
    -- The server's clock in the newest header of this life.
    newest INTEGER NOT NULL,
    PRIMARY KEY (server, counter, nonce)
) STRICT, WITHOUT ROWID;

CREATE TABLE device (
    number INTEGER PRIMARY KEY CHECK (number BETWEEN 0 AND 4294967295),
    guid BLOB NOT NULL UNIQUE CHECK (length(guid) = 16),
    name TEXT NOT NULL UNIQUE COLLATE NOCASE,
    labels TEXT NOT NULL DEFAULT '{}',
    -- 1 waiting, 2 active, 3 blocked
    state INTEGER NOT NULL DEFAULT 2 CHECK (state IN (1, 2, 3)),
    created INTEGER NOT NULL,
    agent_version TEXT,
    platform TEXT,
    hostname TEXT,
    -- 0 never seen, 1 online, 2 offline, 3 unknown
    presence INTEGER NOT NULL DEFAULT 0 CHECK (presence IN (0, 1, 2, 3)),
    since INTEGER,
    last_online INTEGER,
    last_offline INTEGER,
    offline_reason TEXT,
    -- The session that is held: the newest that anybody spoke of.
    session INTEGER,
    signed_in INTEGER,
    -- Up to four boot ids, the session's own first.
    boots BLOB NOT NULL DEFAULT x'' CHECK (length(boots) % 16 = 0 AND length(boots) <= 64),
    server INTEGER REFERENCES server (number),
    -- The file that said so: its server's life, and its sequence.
    heard_life INTEGER NOT NULL DEFAULT 0,
    heard_sequence INTEGER NOT NULL DEFAULT 0,
    -- JSON; absent while nobody has told the road of the session that is held.
    road TEXT,
    address TEXT,
    clock_skew_ms INTEGER,
    policy_version INTEGER
) STRICT;
CREATE INDEX device_presence ON device (presence);
CREATE INDEX device_server ON device (server, presence);
CREATE INDEX device_inactive ON device (state) WHERE state <> 2;

-- Apart from the device's row, which presence rewrites all the time: an inventory has up to 32 KiB.
CREATE TABLE inventory (
    device INTEGER PRIMARY KEY REFERENCES device (number),
    collected INTEGER NOT NULL,
    document TEXT NOT NULL CHECK (json_valid(document))
) STRICT;

CREATE TABLE certificate (
    fingerprint BLOB PRIMARY KEY CHECK (length(fingerprint) = 32),
    device INTEGER NOT NULL REFERENCES device (number),
    key BLOB NOT NULL CHECK (length(key) = 8),
    public_key BLOB NOT NULL,
    serial BLOB NOT NULL,
    not_before INTEGER NOT NULL,
    not_after INTEGER NOT NULL,
    -- 1 active, 2 revoked
    state INTEGER NOT NULL DEFAULT 1 CHECK (state IN (1, 2))
) STRICT, WITHOUT ROWID;
CREATE INDEX certificate_key ON certificate (key);
CREATE INDEX certificate_device ON certificate (device);

CREATE TABLE collection (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE COLLATE NOCASE,
    created INTEGER NOT NULL,
    changed INTEGER NOT NULL,
    -- The rows of membership as a bitmap, and how many they are.
    members BLOB NOT NULL,
    member_count INTEGER NOT NULL
) STRICT;

CREATE TABLE membership (
    collection INTEGER NOT NULL REFERENCES collection (id),
    device INTEGER NOT NULL REFERENCES device (number),
    PRIMARY KEY (collection, device)
) STRICT, WITHOUT ROWID;
CREATE INDEX membership_device ON membership (device);

-- A task has a small number inside, so that a result's key is short; its id (uuid) is what everybody else calls it.
CREATE TABLE task (
    number INTEGER PRIMARY KEY,
    id BLOB NOT NULL UNIQUE CHECK (length(id) = 16),
    action INTEGER NOT NULL,
    parameters BLOB NOT NULL,
    signed BLOB NOT NULL,
    targets BLOB NOT NULL,
    target_count INTEGER NOT NULL CHECK (target_count > 0),
    root BLOB NOT NULL CHECK (length(root) = 32),
    blocks INTEGER NOT NULL,
    audience TEXT NOT NULL,
    started_by TEXT NOT NULL,
    created INTEGER NOT NULL,
    not_before INTEGER NOT NULL,
    expires INTEGER NOT NULL,
    -- 1 active, 2 expired, 3 cancelled
    phase INTEGER NOT NULL DEFAULT 1 CHECK (phase IN (1, 2, 3)),
    cancelled INTEGER,
    cancelled_by TEXT,
    -- When received and running become no answer; and whether that has been done.
    closes INTEGER NOT NULL,
    closed INTEGER NOT NULL DEFAULT 0 CHECK (closed IN (0, 1))
) STRICT;
CREATE INDEX task_active ON task (expires) WHERE phase = 1;
CREATE INDEX task_open ON task (closes) WHERE closed = 0;
CREATE INDEX task_closed ON task (closes) WHERE closed = 1;

CREATE TABLE task_count (
    task INTEGER NOT NULL REFERENCES task (number),
    state INTEGER NOT NULL CHECK (state BETWEEN 1 AND 8),
    n INTEGER NOT NULL CHECK (n >= 0),
    PRIMARY KEY (task, state)
) STRICT, WITHOUT ROWID;

CREATE TABLE result (
    task INTEGER NOT NULL REFERENCES task (number),
    device INTEGER NOT NULL REFERENCES device (number),
    -- TaskState::code
    state INTEGER NOT NULL CHECK (state BETWEEN 1 AND 8),
    heard INTEGER NOT NULL,
    -- Of a final word only:
    code INTEGER,
    started INTEGER,
    finished INTEGER,
    output BLOB,
    -- The receipt: what the device signed, its signature, and the key's id.
    statement BLOB,
    signature BLOB,
    key BLOB,
    PRIMARY KEY (task, device)
) STRICT, WITHOUT ROWID;
-- What people look for. Not for succeeded, of which a page is found at once by the key.
CREATE INDEX result_state ON result (task, state) WHERE state <> 3;

CREATE TABLE queue (
    sequence INTEGER PRIMARY KEY AUTOINCREMENT,
    kind TEXT NOT NULL,
    -- The only server that it is for; all, when absent.
    server INTEGER,
    -- The device or policy document that it is about, so that a later row can take its place.
    about INTEGER,
    payload BLOB NOT NULL,
    valid_until INTEGER NOT NULL
) STRICT;
CREATE INDEX queue_valid_until ON queue (valid_until);
CREATE INDEX queue_about ON queue (kind, about) WHERE about IS NOT NULL;

CREATE TABLE file_seen (
    server INTEGER NOT NULL REFERENCES server (number),
    counter INTEGER NOT NULL,
    nonce INTEGER NOT NULL,
    -- 1 presence, 2 results, 3 status messages
    kind INTEGER NOT NULL CHECK (kind IN (1, 2, 3)),
    sequence INTEGER NOT NULL,
    rows_done INTEGER NOT NULL,
    complete INTEGER NOT NULL CHECK (complete IN (0, 1)),
    -- The devices that a full online list has named so far, until it is finished.
    named BLOB,
    seen INTEGER NOT NULL,
    PRIMARY KEY (server, counter, nonce, kind, sequence)
) STRICT, WITHOUT ROWID;
CREATE INDEX file_seen_seen ON file_seen (seen);

CREATE TABLE policy (
    -- Never used again: the queue row that withdraws a document is known by its id when the document is gone.
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    name TEXT NOT NULL UNIQUE COLLATE NOCASE,
    version INTEGER NOT NULL,
    priority INTEGER NOT NULL,
    -- Everyone, when absent.
    collection INTEGER REFERENCES collection (id),
    settings TEXT NOT NULL,
    issued INTEGER NOT NULL,
    -- Absent while the collection has no member: there is nobody to prove membership to.
    signed BLOB
) STRICT;
CREATE INDEX policy_collection ON policy (collection);

CREATE TABLE status_message (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    -- 1 SMS_NOTIFICATION_SERVER, 2 SMS_NOTIFICATION_MANAGER
    component INTEGER NOT NULL CHECK (component IN (1, 2)),
    -- 1 informational, 2 warning, 3 error
    severity INTEGER NOT NULL CHECK (severity IN (1, 2, 3)),
    number INTEGER NOT NULL,
    time INTEGER NOT NULL,
    about TEXT NOT NULL,
    text TEXT NOT NULL
) STRICT;
CREATE INDEX status_message_component ON status_message (component);
CREATE INDEX status_message_severity ON status_message (severity);
CREATE INDEX status_message_time ON status_message (time);
