//! The same by this crate: one stream of one connection, a program of one thread on each side.

use std::sync::Arc;
use std::time::Duration;

use vbus_core::transport::config::EndpointConfig;
use vbus_core::transport::{Next, StreamSpec};

use crate::courier::{Courier, Duty, Parcel, now};

/// Bytes of a message. Quinn's is one stream without any; 64 KiB is what a camera's or a radar's would be cut to.
const MESSAGE: u64 = 64 << 10;
const HEAD: usize = 16;

/// One end: what is left to be sent, and what has come.
struct Load {
    parcel: Parcel,
    left: u64,
    arrived: u64,
}

impl Load {
    fn of(bytes: u64) -> Self {
        let body = Arc::from(vec![7; MESSAGE as usize - HEAD]);
        Self { parcel: Parcel { head: [0; HEAD], body }, left: bytes, arrived: 0 }
    }
}

impl Duty for Load {
    fn next(&mut self, _: usize, most: u64) -> Next<Parcel> {
        if self.left == 0 {
            return Next::Nothing;
        }
        if most < MESSAGE {
            return Next::TooLong(MESSAGE);
        }
        self.left = self.left.saturating_sub(MESSAGE);
        Next::Message(self.parcel.clone())
    }

    fn take(&mut self, _: usize, message: &[u8]) {
        self.arrived += message.len() as u64;
    }
}

pub(crate) fn carry(datagram: usize, bytes: u64) {
    let (left, right) = crate::two_sockets();
    let to = right.address();
    let config =
        || EndpointConfig { datagram_max: datagram, mtu_hint: Some(datagram), ..EndpointConfig::default() };
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let mut courier = Courier::new(right, config(), Load::of(0)).expect("an endpoint");
            while !courier.is_lost() {
                courier.turn(None).expect("the socket works");
            }
            assert!(courier.duty().arrived >= bytes, "{} of {bytes} bytes came", courier.duty().arrived);
        });
        let mut courier = Courier::new(left, config(), Load::of(bytes)).expect("an endpoint");
        courier.reach(to, 1, StreamSpec { reliable: true, ordered: true, priority: 4 });
        while !courier.is_connected() || courier.duty().left > 0 || !courier.is_quiet() {
            let soon = now() + Duration::from_millis(100);
            courier.turn(Some(soon)).expect("the socket works");
        }
        if std::env::var_os("TELL").is_some() {
            eprintln!("{}", courier.told());
        }
        courier.close();
    });
}
