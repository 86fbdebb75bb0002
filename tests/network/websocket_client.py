"""What Python's websockets sees of a server: one case for each argument after the URL, one line of JSON for each.

A client that is not ours: it checks what the server says by RFC 6455 itself, and ends with an error where that does not hold.
"""

import asyncio
import json
import ssl
import sys

import websockets

# A server of whose certificate nobody asks.
TLS = ssl.create_default_context()
TLS.check_hostname = False
TLS.verify_mode = ssl.CERT_NONE


async def garbage(socket):
    """A binary message that is no TLS: an answer, and an end."""
    return await say(socket, b"this is no ClientHello")


async def fragments(socket):
    """The same in three frames of one message: a record of TLS whose last byte is at fault."""
    return await say(socket, [b"\x16\x03", b"\x01\x00\x04\x01", b"\x00\x00\x00"])


async def text(socket):
    """A message of text, which there is none."""
    return await say(socket, "words")


async def ping(socket):
    for payload in [b"", b"x" * 125]:
        await asyncio.wait_for(await socket.ping(payload), 10)
    await socket.close(1000, "enough")
    return {"pongs": 2, "code": socket.close_code}


async def long(socket):
    """One frame of more than 1 MiB."""
    return await say(socket, b"x" * (1024 * 1024 + 1))


async def close(socket):
    await socket.close(1001, "going away")
    return {"code": socket.close_code}


async def say(socket, message):
    """Sends a message, whose end may find the server gone; all that comes until it ends."""
    heard = b""
    try:
        await socket.send(message)
    except websockets.ConnectionClosed:
        pass
    try:
        while True:
            message = await asyncio.wait_for(socket.recv(), 20)
            heard += message if isinstance(message, bytes) else b"text!"
    except websockets.ConnectionClosed:
        pass
    return {"heard": heard.hex(), "code": socket.close_code}


async def main():
    url, cases = sys.argv[1], sys.argv[2:]
    for case in cases:
        options = {"ssl": TLS} if url.startswith("wss:") else {}
        # By itself it offers permessage-deflate, and here a subprotocol, none of which there is.
        async with websockets.connect(url, subprotocols=["chat"], ping_interval=None, **options) as socket:
            told = await globals()[case](socket)
            told.update(case=case, subprotocol=socket.subprotocol, extensions=len(socket.extensions))
        print(json.dumps(told), flush=True)


asyncio.run(main())
