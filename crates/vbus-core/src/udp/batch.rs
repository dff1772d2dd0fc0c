//! The buffers that datagrams arrive in, and what the kernel says about each.

use std::io::IoSliceMut;
use std::net::{IpAddr, SocketAddr};

use quinn_udp::RecvMeta;

use super::{normal, normal_ip};
use crate::base::ecn::Ecn;

/// Buffers of one [`super::Batch`]: with coalescing each takes up to 64 KiB of equal datagrams.
const BUFFERS: usize = quinn_udp::BATCH_SIZE;
/// More than any datagram, or any run of coalesced ones, has.
const BUFFER_BYTES: usize = 1 << 16;
/// The loopback device of every network namespace has this index (`LOOPBACK_IFINDEX` of the kernel).
const LOOPBACK_INTERFACE: u32 = 1;

/// Room for what one call of [`super::Socket::receive`] takes from the kernel. Memory is touched as it is needed.
pub struct Batch {
    bytes: Vec<u8>,
    told: [RecvMeta; BUFFERS],
    filled: usize,
}

/// A datagram that arrived.
#[derive(Debug)]
pub struct Datagram<'a> {
    /// Who sent it, as its header says.
    pub from: SocketAddr,
    /// Which address of ours it was sent to.
    pub to: Option<IpAddr>,
    /// It came through the loopback device. That its addresses are of this host is judged elsewhere.
    pub by_loopback: bool,
    /// What routers wrote on it.
    pub ecn: Ecn,
    /// Its payload.
    pub bytes: &'a mut [u8],
}

impl Batch {
    /// Empty.
    pub fn new() -> Self {
        Self { bytes: vec![0; BUFFERS * BUFFER_BYTES], told: [RecvMeta::default(); BUFFERS], filled: 0 }
    }

    /// What was received last, in the order of arrival. Datagrams without a payload are left out.
    pub fn datagrams(&mut self) -> impl Iterator<Item = Datagram<'_>> {
        self.bytes.chunks_exact_mut(BUFFER_BYTES).zip(&self.told[..self.filled]).flat_map(|(buffer, told)| {
            let from = normal(told.addr);
            let to = told.dst_ip.map(normal_ip);
            let by_loopback = told.interface_index == Some(LOOPBACK_INTERFACE);
            let ecn = told.ecn.map_or(Ecn::NotEct, |bits| Ecn::from_bits(bits as u8));
            // A stride of zero stands with an empty datagram only.
            buffer[..told.len].chunks_mut(told.stride.max(1)).map(move |bytes| Datagram {
                from,
                to,
                by_loopback,
                ecn,
                bytes,
            })
        })
    }

    /// How many buffers the last call filled.
    pub fn reads(&self) -> usize {
        self.filled
    }

    /// True when the last call may have left datagrams in the kernel.
    pub fn is_full(&self) -> bool {
        self.filled == BUFFERS
    }

    /// Has `receive` fill the buffers; it returns how many it filled.
    pub(super) fn fill<E>(
        &mut self,
        receive: impl FnOnce(&mut [IoSliceMut<'_>], &mut [RecvMeta]) -> Result<usize, E>,
    ) -> Result<(), E> {
        self.filled = 0;
        let mut buffers = self.bytes.chunks_exact_mut(BUFFER_BYTES);
        let mut slices: [IoSliceMut<'_>; BUFFERS] =
            std::array::from_fn(|_| IoSliceMut::new(buffers.next().expect("as many chunks as BUFFERS")));
        self.filled = receive(&mut slices, &mut self.told)?;
        Ok(())
    }

    /// How many datagrams and bytes it holds.
    pub(super) fn sum(&self) -> (u64, u64) {
        self.told[..self.filled].iter().fold((0, 0), |(datagrams, bytes), told| {
            (datagrams + told.len.div_ceil(told.stride.max(1)) as u64, bytes + told.len as u64)
        })
    }
}

impl Default for Batch {
    fn default() -> Self {
        Self::new()
    }
}
