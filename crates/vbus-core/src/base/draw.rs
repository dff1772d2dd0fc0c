//! Bytes that nobody guesses, and that nobody else draws: not even a copy of this machine.
//!
//! A virtual machine that was saved and goes on twice has one and the same randomness in both kernels, until each has
//! stirred its own, which takes seconds to minutes. Nodes opened meanwhile would have one id and one key. So what the
//! kernel gives is hashed with what is not the same in both: the processor's own dice, where it has some, and clocks,
//! read again and again to the nanosecond. None of this makes the kernel's bytes easier to guess.

use rustix::time::{ClockId, clock_gettime};
use sha2::{Digest, Sha256};

const READINGS: usize = 16;
const CLOCKS: [ClockId; 3] = [ClockId::Realtime, ClockId::Monotonic, ClockId::ThreadCPUTime];
const BLOCK: usize = 32;

/// Fills it.
///
/// # Panics
/// When the kernel has no randomness to give, which leaves nothing sensible to do.
pub fn fill(bytes: &mut [u8]) {
    let mut secret = [0; BLOCK];
    getrandom::fill(&mut secret).expect("the kernel gives random bytes");
    let seed = stirred(&secret);
    for (number, block) in (0_u64..).zip(bytes.chunks_mut(BLOCK)) {
        let drawn = Sha256::new().chain_update(seed).chain_update(number.to_le_bytes()).finalize();
        block.copy_from_slice(&drawn[..block.len()]);
    }
}

/// The kernel's bytes, with what a copy of this machine does not have.
fn stirred(secret: &[u8; BLOCK]) -> [u8; BLOCK] {
    let mut hash = Sha256::new().chain_update(secret);
    for _ in 0..READINGS {
        for clock in CLOCKS {
            let now = clock_gettime(clock);
            hash.update(now.tv_sec.to_le_bytes());
            hash.update(now.tv_nsec.to_le_bytes());
        }
        hash.update(dice().to_le_bytes());
    }
    hash.finalize().into()
}

/// A word of the processor's own dice; 0 where it has none, or they fail.
#[cfg(all(target_arch = "x86_64", not(miri)))]
fn dice() -> u64 {
    #[target_feature(enable = "rdrand")]
    fn thrown() -> u64 {
        let mut word = 0;
        // What it says of success is not needed: a word that failed is 0.
        let _ = std::arch::x86_64::_rdrand64_step(&mut word);
        word
    }
    if std::arch::is_x86_feature_detected!("rdrand") {
        // SAFETY: this processor was just asked whether it can.
        unsafe { thrown() }
    } else {
        0
    }
}

/// A word of the processor's own dice; 0 where it has none, or they fail.
#[cfg(not(all(target_arch = "x86_64", not(miri))))]
const fn dice() -> u64 {
    0
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn the_same_bytes_of_the_kernel_become_others_each_time() {
        let secret = [7; BLOCK];
        let drawn: HashSet<_> = (0..1000).map(|_| stirred(&secret)).collect();
        assert_eq!(drawn.len(), 1000);
    }

    #[test]
    fn every_length_is_filled() {
        for length in [0, 1, 16, BLOCK, 100] {
            // A byte that stays 0 in eight draws has not been filled.
            let mut filled = vec![0; length];
            for _ in 0..8 {
                let mut bytes = vec![0; length];
                fill(&mut bytes);
                filled.iter_mut().zip(&bytes).for_each(|(all, byte)| *all |= byte);
            }
            assert!(filled.iter().all(|byte| *byte != 0));
        }
    }
}
