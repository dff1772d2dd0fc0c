//! Headers of datagrams: what is read is written again as it was.

use vbus_core::wire::packet::{HEADER, HELLO_MIN, Header, Long};

pub fn run(bytes: &[u8]) {
    look(bytes);
    // What the fuzzer would be long in finding: magic, version, and the zeros behind a Hello.
    let Some((kind, rest)) = bytes.split_first() else { return };
    let mut long = [&[0x80 | (kind % 8)][..], b"vbus\x01", rest].concat();
    look(&long);
    if kind % 8 == 1 && long.len() < HELLO_MIN {
        long.resize(HELLO_MIN, 0);
        look(&long);
    }
}

fn look(datagram: &[u8]) {
    if Header::leads(datagram)
        && let Ok(header) = Header::read(datagram)
    {
        assert_eq!(header.bytes(), datagram[..HEADER]);
    }
    let Ok(long) = Long::read(datagram) else { return };
    let again = long.bytes();
    match long {
        // Padding is not told.
        Long::Hello(_) => {
            assert!(datagram.starts_with(&again) || again.starts_with(datagram));
            assert_eq!(Long::read(&again), Ok(long));
        }
        Long::OtherVersion { .. } => assert_eq!(again[..10], datagram[..10]),
        _ => assert_eq!(again, datagram),
    }
}
