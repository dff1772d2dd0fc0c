//! The least that can be done: seal, send, receive, open. The receiver says now and then how far it is, so that
//! nothing overruns it; what is lost nevertheless is not repaired.

use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::time::Duration;

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use vbus_core::base::descriptor::wait_readable;
use vbus_core::base::ecn::Ecn;
use vbus_core::udp::{Batch, SEGMENTS_MAX, Sent, Socket, TRANSMIT_MAX, Transmit};

const TAG: usize = 16;
/// So many bytes may be under way before the receiver has to say something.
const WINDOW: u64 = 2 << 20;
const SAY_EVERY: u64 = 256 << 10;

pub(crate) fn carry(datagram: usize, bytes: u64) {
    let (left, right) = crate::two_sockets();
    let (from, to) = (left.address(), right.address());
    std::thread::scope(|scope| {
        scope.spawn(move || receive(right, from, bytes));
        send(left, to, datagram, bytes);
    });
}

fn key() -> LessSafeKey {
    LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &[7; 32]).expect("a key of 32 bytes"))
}

fn nonce(number: u64) -> Nonce {
    let mut nonce = [0; 12];
    nonce[4..].copy_from_slice(&number.to_be_bytes());
    Nonce::assume_unique_for_key(nonce)
}

fn send(mut socket: Socket, to: SocketAddr, datagram: usize, bytes: u64) {
    let key = key();
    let segments = (TRANSMIT_MAX / datagram).clamp(1, SEGMENTS_MAX);
    let payload = vec![1u8; datagram];
    let mut packet = Vec::with_capacity(segments * datagram);
    let (mut number, mut sent, mut arrived) = (0u64, 0, 0);
    let mut batch = Batch::new();
    while arrived < bytes {
        if sent >= (arrived + WINDOW).min(bytes) {
            if !wait_readable(&[socket.as_fd()], Some(Duration::from_millis(50)), None).expect("poll") {
                // Something was lost, so that the receiver waits too.
                sent = arrived;
            }
            while socket.receive(&mut batch).expect("receive") {
                for said in batch.datagrams() {
                    arrived = u64::from_be_bytes(said.bytes.try_into().expect("eight bytes"));
                }
            }
            continue;
        }
        packet.clear();
        for _ in 0..segments {
            let start = packet.len();
            packet.extend_from_slice(&number.to_be_bytes());
            packet.extend_from_slice(&payload[8 + TAG..]);
            let (header, inside) = packet[start..].split_at_mut(8);
            let tag = key
                .seal_in_place_separate_tag(nonce(number), Aad::from(header), inside)
                .expect("short enough");
            packet.extend_from_slice(tag.as_ref());
            number += 1;
        }
        let transmit = Transmit { to, from: None, ecn: Ecn::NotEct, segment: Some(datagram), bytes: &packet };
        match socket.send(&transmit) {
            Sent::All => sent += packet.len() as u64,
            other => panic!("loopback takes everything, but: {other:?}"),
        }
    }
}

fn receive(mut socket: Socket, from: SocketAddr, bytes: u64) {
    let key = key();
    let mut batch = Batch::new();
    let (mut arrived, mut said) = (0, 0);
    while said < bytes {
        // Says it again when nothing comes: what was said, or sent, may be lost.
        let idle = !wait_readable(&[socket.as_fd()], Some(Duration::from_millis(20)), None).expect("poll");
        if socket.receive(&mut batch).expect("receive") {
            for datagram in batch.datagrams() {
                let (header, sealed) = datagram.bytes.split_at_mut(8);
                let number = u64::from_be_bytes(header.try_into().expect("eight bytes"));
                key.open_in_place(nonce(number), Aad::from(header), sealed).expect("what was sealed opens");
                arrived += datagram.bytes.len() as u64;
            }
        }
        if idle || arrived >= said + SAY_EVERY || arrived >= bytes {
            said = arrived;
            let word = said.to_be_bytes();
            let transmit = Transmit { to: from, from: None, ecn: Ecn::NotEct, segment: None, bytes: &word };
            assert!(matches!(socket.send(&transmit), Sent::All), "loopback takes everything");
        }
    }
}
