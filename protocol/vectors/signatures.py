"""Verifies Ed25519 (RFC 8032) and ECDSA P-256 with SHA-256 (FIPS 186-5) signatures with the standard library alone.

For check.py: slow, not hardened, good enough to check test vectors. An agent takes a cryptographic library.
"""
import hashlib


def ed25519(public, message, signature):
    p, order = 2**255 - 19, 2**252 + 27742317777372353535851937790883648493
    d = -121665 * pow(121666, -1, p) % p

    def add(a, b):
        t = d * a[0] * b[0] * a[1] * b[1] % p
        return ((a[0] * b[1] + b[0] * a[1]) * pow(1 + t, -1, p) % p, (a[1] * b[1] + a[0] * b[0]) * pow(1 - t, -1, p) % p)

    def point(data):
        y = int.from_bytes(data, "little") & (1 << 255) - 1
        square = (y * y - 1) * pow(d * y * y + 1, -1, p) % p
        x = pow(square, (p + 3) // 8, p)
        x = x if x * x % p == square else x * pow(2, (p - 1) // 4, p) % p
        if x * x % p != square:
            raise ValueError("no point")
        return (x if x % 2 == data[31] >> 7 else p - x, y)
    s, base = int.from_bytes(signature[32:], "little"), point((4 * pow(5, -1, p) % p).to_bytes(32, "little"))
    h = int.from_bytes(hashlib.sha512(signature[:32] + public + message).digest(), "little") % order
    return s < order and times(s, base, add, (0, 1)) == add(point(signature[:32]), times(h, point(public), add, (0, 1)))


def p256(public, message, signature):
    p, a = 2**256 - 2**224 + 2**192 + 2**96 - 1, -3
    order = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
    base = (0x6B17D1F2E12C4247F8BCE6E563A440F277037D812DEB33A0F4A13945D898C296,
            0x4FE342E2FE1A7F9B8EE7EB4A7C0F9E162BCE33576B315ECECBB6406837BF51F5)

    def add(left, right):
        if left is None or right is None:
            return left or right
        if left[0] == right[0] and (left[1] + right[1]) % p == 0:
            return None
        slope = ((3 * left[0] ** 2 + a) * pow(2 * left[1], -1, p) if left == right
                 else (right[1] - left[1]) * pow(right[0] - left[0], -1, p))
        x = (slope * slope - left[0] - right[0]) % p
        return (x, (slope * (left[0] - x) - left[1]) % p)
    number = lambda data: int.from_bytes(data, "big")
    r, s, key = number(signature[:32]), number(signature[32:]), (number(public[1:33]), number(public[33:]))
    inverse, digest = pow(s, -1, order), number(hashlib.sha256(message).digest())
    sum_ = add(times(digest * inverse % order, base, add, None), times(r * inverse % order, key, add, None))
    return sum_ is not None and sum_[0] % order == r


def times(factor, point, add, result):
    while factor:
        result, point, factor = (add(result, point) if factor & 1 else result), add(point, point), factor >> 1
    return result
