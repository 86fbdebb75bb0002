#!/usr/bin/env python3
"""Reads the test vectors with docs/protocol.md alone, and the standard library of Python.

It shares no code with BGB: what it understands, a stranger can. Every frame, statement, envelope, proof, file and queue row
(but for the Roaring bitmaps in it) is decoded and compared with the values beside it, and signatures are verified.
Use: python3 protocol/vectors/check.py [FILE...]
"""
import glob, hashlib, ipaddress, json, os, struct, sys, uuid
sys.dont_write_bytecode = True  # nothing is left in the tree
from signatures import ed25519, p256  # noqa: E402

class Bad(ValueError):
    """The bytes are not what they should be (as is a text that is not UTF-8)."""
def need(condition, why):
    if not condition: raise Bad(why)
# Section 3: encoding. A type is a function that takes a reader and gives a value as the vectors' JSON shows it.
class Reader:
    def __init__(self, data): self.data, self.at = data, 0

    def take(self, count):
        need(count <= len(self.data) - self.at, "cut short")
        self.at += count
        return self.data[self.at - count:self.at]

    def varint(self, bits):
        value = 0
        for index in range((bits + 6) // 7):
            byte = self.take(1)[0]
            value |= (byte & 0x7F) << (7 * index)
            if byte < 0x80:
                need(value < 1 << bits, "number does not fit")
                return value
        raise Bad("number does not end")

def zigzag(value): return value >> 1 if value % 2 == 0 else -(value >> 1) - 1
def unsigned(bits): return lambda r: r.varint(bits)
def signed(bits): return lambda r: zigzag(r.varint(bits))
def raw(r): return r.take(r.varint(64))
def text(r): return raw(r).decode("utf-8")
def u8(r): return r.take(1)[0]
def binary(r): return raw(r).hex()
def fixed(count): return lambda r: r.take(count).hex()
def option(kind): return lambda r: kind(r) if flag(r) else None
def listed(kind): return lambda r: [kind(r) for _ in range(r.varint(64))]
def structure(**fields): return lambda r: {name: kind(r) for name, kind in fields.items()}
def site(r): return r.take(3).decode("ascii")
def task(r): return str(uuid.UUID(bytes=r.take(16)))
def nothing(r): return None

def flag(r):
    byte = u8(r)
    need(byte < 2, "neither 0 nor 1")
    return byte == 1

def choice(*choices):
    """Each choice is a name, or a name and its fields."""
    def read(r):
        number = r.varint(32)
        need(number < len(choices), "no such choice")
        chosen = choices[number]
        return chosen if isinstance(chosen, str) else {chosen[0]: chosen[1](r)}
    return read

def address(r):
    version = r.varint(32)
    need(version < 2, "no such address")
    host = ipaddress.ip_address(r.take(16 if version else 4))
    return f"[{host}]:{r.varint(16)}" if version else f"{host}:{r.varint(16)}"

u16, u32, u64, i32, i64, time = unsigned(16), unsigned(32), unsigned(64), signed(32), signed(64), unsigned(64)
def body(kind, data, version=0x10):
    """Section 2, rules 1 to 3."""
    need(version >> 4 == 1, "another major version")
    reader = Reader(data)
    value = kind(reader)
    need(reader.at == len(reader.data) or version > 0x10, "bytes behind the last field")
    return value

def versioned(kind, data): return body(kind, data[1:], data[0])

# Sections 4, 6, 7: messages and statements.
STATE = choice("received", "running", "succeeded", "failed", "interrupted", "refused", "cancelled", "no-answer")
ROAD = structure(
    road=choice("tcp", "web-socket", "long-poll"), outer_tls=flag, proxied=flag,
    reason=option(choice("refused", "timed-out", "reset", ("proxy-answer", u16), ("intercepted", text))))
DIGEST = structure(root=fixed(32), blocks=u32)
SIGNATURE = structure(key=fixed(8), bytes=binary)
ENVELOPE = structure(statement=binary, signatures=listed(SIGNATURE))
RESULT = structure(statement=binary, signature=SIGNATURE, output=binary)
PUSH = structure(signed=binary, proof=binary)
REFUSAL = choice("expired", "not-yet-valid", "not-a-target", "bad-signature", "wrong-site", "unknown-action",
                 "not-allowed", "too-many-tasks")
HELLO = structure(
    agent_version=text, platform=structure(os=text, os_version=text, arch=text, hostname=text), boot=fixed(16),
    session=u64, abilities=u64, road=ROAD, keepalive_secs=option(u32), clock_skew_ms=i64, policy_version=u64,
    known_tasks=listed(structure(task=task, state=STATE)))
WELCOME = structure(
    server=u32, head=binary, keepalive_secs=u32, reconnect_window_secs=u32, reconnect_slot_secs=option(u32),
    other_servers=listed(text), abilities=u64)
MESSAGES = {
    "agent": {1: HELLO, 2: nothing, 3: task, 4: task, 5: RESULT, 6: u32, 9: nothing},
    "server": {
        0x101: WELCOME, 0x102: binary, 0x103: PUSH, 0x104: binary, 0x105: task,
        0x106: structure(request=u32, index=u16, count=u16, document=option(PUSH)),
        0x108: structure(window_secs=u32, servers=listed(text)),
        0x109: choice("blocked", "certificate", "superseded", "unavailable", "full", "protocol"),
    },
}
STATEMENTS = {
    "task": structure(
        site=site, task=task, action=u16,
        parameters=choice(("Inline", binary), ("Blob", structure(digest=fixed(32), bytes=u64))),
        targets=DIGEST, not_before=time, expires=time, approval=option(fixed(32))),
    "cancel": structure(site=site, task=task, expires=time, cancelled=time),
    "head": structure(site=site, generation=fixed(16), sequence=u64, time=time),
    "policy": structure(site=site, name=text, version=u64, priority=i32, scope=choice("Everyone", ("Set", DIGEST)),
                        issued=time, settings=option(text)),
    "result": structure(site=site, task=task, device=u32, state=STATE, refusal=option(REFUSAL), code=i32,
                        started=time, finished=time, output_digest=fixed(32)),
}
SKIPPED = object()
PRIMITIVES = {
    "bool": flag, "u8": u8, "u16": u16, "u32": u32, "u64": u64, "i32": i32, "i64": i64, "text": text, "bytes": binary,
    "option u16": option(u16), "list of text": listed(text), "address": address,
}

def frame(data, sender):
    """The message in a frame; SKIPPED where it may be."""
    need(len(data) >= 6, "cut short")
    kind, version, length = struct.unpack(">H", data[:2])[0], data[2], int.from_bytes(data[3:6], "big")
    need(length <= 65536, "oversized")
    need(len(data) == 6 + length, "not one whole frame")
    if kind >= 0x8000:
        return SKIPPED
    need(kind in MESSAGES[sender], "unknown type")
    value = body(MESSAGES[sender][kind], data[6:], version)
    if kind == 1:
        texts, asked = [value["agent_version"], *value["platform"].values()], value["keepalive_secs"]
        need(all(len(text.encode()) <= 256 for text in texts), "text too long")
        need(len(value["known_tasks"]) <= 256 and (asked is None or asked >= 20), "over a limit")
    return value

# Section 10: files, and section 11: queue rows.
PRESENCE = structure(
    device=u32, boot=fixed(16), session=u64, signed_in=time,
    presence=choice(("Online", structure(
        address=address, road=ROAD, agent_version=text, clock_skew_ms=i64, policy_version=u64, platform=text,
        hostname=text)), ("Offline", structure(at=time, reason=text))))
ROWS = {
    "presence-full": PRESENCE, "presence-delta": PRESENCE,
    "results": structure(task=task, device=u32, heard=time, word=choice("Received", "Running", ("Final", RESULT))),
    "status": structure(component=choice("SMS_NOTIFICATION_SERVER", "SMS_NOTIFICATION_MANAGER"),
                        severity=choice("informational", "warning", "error"), id=u16, time=time, about=text, text=text),
}
KINDS, ENDINGS = dict(enumerate(ROWS, 1)), {1: "BOS", 2: "BOS", 3: "BTS", 4: "SVF"}
QUEUE = choice(
    ("Task", structure(signed=binary, targets=binary)),
    ("Release", structure(task=task, devices=option(binary), **{"from": time})),
    ("Cancel", structure(signed=binary)), ("Block", structure(device=u32)), ("Unblock", structure(device=u32)),
    ("Revoke", structure(fingerprint=fixed(32))), ("Policy", structure(signed=binary, devices=option(binary))),
    ("Supersede", structure(device=u32, boot=fixed(16), session=u64)), ("Head", structure(signed=binary)))

def crc32c(data):
    crc = 0xFFFFFFFF
    for bit in (byte >> shift & 1 for byte in data for shift in range(8)):
        crc = crc >> 1 ^ (0x82F63B78 if crc & 1 != bit else 0)
    return crc ^ 0xFFFFFFFF

def summed(data):
    """What stands before a checksum, which is the last four bytes."""
    need(crc32c(data[:-4]) == int.from_bytes(data[-4:], "big"), "checksum")
    return data[:-4]

def file(data):
    reader = Reader(data)
    parts = struct.unpack(">8sBB3s3xI4xQQQQQI", summed(reader.take(72)))
    magic, version, kind, code, server, counter, nonce, sequence, when, rows, blocks = parts
    need(magic == b"BGBFILE1" and version >> 4 == 1, "not a file of version 1")
    header = {"kind": KINDS[kind], "site": code.decode(), "server": server, "sequence": sequence, "time": when,
              "rows": rows, "blocks": blocks, "epoch": {"counter": counter, "nonce": nonce}}
    found, sums = [], b""
    for number in range(blocks):
        magic, own, count, length = struct.unpack(">4sIII", reader.take(16))
        need(magic == b"BLK1" and own == number and length <= 1 << 20 and count <= 32768, "head of a block")
        reader.at -= 16
        block = reader.take(16 + length + 4)
        inside, sums = Reader(summed(block)[16:]), sums + block[-4:]
        found += [body(ROWS[header["kind"]], inside.take(inside.varint(32)), 0x1F) for _ in range(count)]
        need(inside.at == len(inside.data), "bytes behind the last row")
    end = struct.unpack(">4sIQI", summed(reader.take(24)))
    need(end == (b"END1", blocks, rows, crc32c(sums)) and len(found) == rows and reader.at == len(reader.data), "end")
    return header, found, f"{counter:010}-{nonce:016x}-{sequence:010}.{ENDINGS[kind]}"

# Section 8: target sets.
def sha256(*parts): return hashlib.sha256(b"".join(parts)).digest()
def leaf(index, block): return sha256(b"\0", struct.pack(">I", index), block)
def node(left, right): return sha256(b"\1", left, right)

def tree(ranges):
    highest = max(last for _, last in ranges)
    bits = bytearray((highest // 2048 + 1) * 256)
    for first, last in ranges:
        for device in range(first, last + 1):
            bits[device // 8] |= 1 << device % 8
    level = [leaf(at // 256, bits[at:at + 256]) for at in range(0, len(bits), 256)]
    blocks = len(level)
    while len(level) > 1:
        level = [node(*level[at:at + 2]) if at + 1 < len(level) else level[at] for at in range(0, len(level), 2)]
    return level[0], blocks

def member(device, root, blocks, proof):
    at, width = device // 2048, blocks
    if at >= blocks:
        return "not a member"
    if len(proof) < 256:
        return "false"
    value, path = leaf(at, proof[:256]), proof[256:]
    while width > 1:
        if at ^ 1 < width:
            if len(path) < 32:
                return "false"
            other, path = path[:32], path[32:]
            value = node(value, other) if at % 2 == 0 else node(other, value)
        at, width = at // 2, (width + 1) // 2
    if path or value != root:
        return "false"
    return "member" if proof[device % 2048 // 8] >> device % 8 & 1 else "not a member"

# Section 6: what is signed, and the vectors.
def envelope(entry, key):
    value = body(ENVELOPE, bytes.fromhex(entry["hex"]))
    statement, signature = bytes.fromhex(value["statement"]), value["signatures"][0]
    message = b"bgb/1 " + entry["kind"].encode() + b"\0" + statement
    versioned(STATEMENTS[entry["kind"]], statement)
    need(message.hex() == entry["signed"] and signature["key"] == key["id"], "what is signed, and by whom")
    need(ed25519(bytes.fromhex(key["public"]), message, bytes.fromhex(signature["bytes"])), "signature")
    return value

def result(entry, key):
    value = entry["value"]
    statement, output = bytes.fromhex(value["statement"]), bytes.fromhex(value["output"])
    says, message = versioned(STATEMENTS["result"], statement), b"bgb/1 result\0" + statement
    need(message.hex() == entry["signed"] and value["signature"]["key"] == key["id"], "what is signed, and by whom")
    need(says["output_digest"] == sha256(output).hex(), "digest of the output")
    need(p256(bytes.fromhex(key["public"]), message, bytes.fromhex(value["signature"]["bytes"])), "signature")
    return says

def check(document):
    """Says what is wrong with a release's vectors, and gives the number of faults."""
    same, keys = lambda left, right: need(left == right, f"{left!r} is not {right!r}"), document["keys"]
    [same(sha256(bytes.fromhex(key["public"]))[:8].hex(), key["id"]) for key in keys.values()]

    def certificate(entry, der):
        for identity in filter(None, [entry["identity"]]):
            same(sha256(der).hex(), identity["fingerprint"])
            need(identity["holder"].encode() in der and bytes.fromhex(identity["public_key"]) in der, "holder and key")

    def target_set(entry, _):
        root, blocks = tree(entry["devices"])
        same((root.hex(), blocks), (entry["root"], entry["blocks"]))
        for proof in entry["proofs"]:
            same(member(proof["device"], root, blocks, bytes.fromhex(proof["proof"])), proof["says"])

    def refused(entry, data):
        try:
            frame(data, entry["from"])
        except ValueError:
            return
        raise Bad("should have been refused")

    message = lambda e, data: same((int.from_bytes(data[:2], "big"), frame(data, e["from"])),
                                   (e["type"], SKIPPED if e.get("skipped") else e["value"]))
    sections = {
        "certificates": certificate, "target_sets": target_set, "refused": refused,
        "messages": message, "tolerated": message,
        "primitives": lambda e, data: same(body(PRIMITIVES[e["type"]], data), e["value"]),
        "statements": lambda e, data: same(versioned(STATEMENTS[e["kind"]], data), e["value"]),
        "envelopes": lambda e, _: same(envelope(e, keys["manager"]), e["value"]),
        "results": lambda e, _: same(result(e, keys["device"]), e["says"]),
        "files": lambda e, data: same(file(data), (e["header"], e["rows"], e["file_name"])),
        "queue": lambda e, data: same(versioned(QUEUE, data), e["value"]),
    }
    need(sections.keys() | {"release", "note", "keys"} == document.keys(), "a section is unknown, or missing")
    faults = count = 0
    for section, judge in sections.items():
        for entry in document[section]:
            count += 1
            try:
                judge(entry, bytes.fromhex(entry.get("hex") or entry.get("der") or ""))
            except Exception as fault:  # whatever it is, the others are checked as well
                faults += 1
                print(f"{section}: {entry['name']}: {type(fault).__name__}: {fault}")
    print(f"release {document['release']}: {count - faults} of {count} vectors read as the document says")
    return faults

if __name__ == "__main__":
    need(crc32c(b"123456789") == 0xE3069283, "this CRC-32C is not the one that is meant")
    paths = sys.argv[1:] or sorted(glob.glob(os.path.join(os.path.dirname(os.path.abspath(__file__)), "*.json")))
    need(paths, "there are no vectors")
    sys.exit(min(1, sum([check(json.load(open(path, encoding="utf-8"))) for path in paths])))
