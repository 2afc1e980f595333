"""Changes of single bytes in a bundle's list of keys."""

import pytest
from bundles import make_entries, make_finished, sign, spell

from whence.proof.verification import verify_bundle
from whence_server.proof.signer import PrivateKey
from whence_server.proof.signing_keys import make_entry

ROTATED_NS = 1_780_000_001_000_000_000


# One bit, the case of a letter, and a byte that is no text.
@pytest.mark.parametrize("mask", [1, 32, 128])
def test_every_changed_byte_of_a_list_of_keys_is_refused(mask: int) -> None:
    old, new = PrivateKey.generate(), PrivateKey.generate()
    keys = [make_entry(old, now_ns=ROTATED_NS // 2), make_entry(new, old, now_ns=ROTATED_NS)]
    entries = make_entries(1)
    data = spell(sign(entries, make_finished(1), new), entries, keys)
    # The list alone leads from the trusted key to the one that has signed.
    trusted = [old.public.pem]
    claimed = verify_bundle(data, trusted)
    assert claimed.verified, claimed.checks
    begin, end = data.index(b'"keys"'), data.index(b'"leaves"')
    assert end - begin > 1_000
    for place in range(begin, end):
        changed = data[:place] + bytes([data[place] ^ mask]) + data[place + 1 :]
        assert not verify_bundle(changed, trusted).verified, place
