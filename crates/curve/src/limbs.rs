//! Numbers of 256 bits as 32 bytes and as four limbs of 64 bits.

/// Little-endian limbs of big-endian bytes.
pub(crate) const fn limbs(bytes: &[u8; 32]) -> [u64; 4] {
    let mut limbs = [0; 4];
    let mut i = 0;
    while i < 32 {
        limbs[3 - i / 8] = limbs[3 - i / 8] << 8 | bytes[i] as u64;
        i += 1;
    }
    limbs
}

/// Big-endian bytes of little-endian limbs.
pub(crate) fn bytes(limbs: &[u64; 4]) -> [u8; 32] {
    let mut bytes = [0; 32];
    for (bytes, limb) in bytes.rchunks_exact_mut(8).zip(limbs) {
        bytes.copy_from_slice(&limb.to_be_bytes());
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_big_endian() {
        let text: [u8; 32] = std::array::from_fn(|i| i as u8);
        assert_eq!(limbs(&text)[0], 0x1819_1a1b_1c1d_1e1f);
        assert_eq!(bytes(&limbs(&text)), text);
    }
}
