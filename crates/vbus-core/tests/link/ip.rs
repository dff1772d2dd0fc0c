//! What happens to an IP packet on a link: it is marked, or its payload damaged so that no checksum tells.

use crate::link::Delivery;

const IPV4_HEADER_MIN: usize = 20;
const IPV6_HEADER: usize = 40;
const UDP_HEADER: usize = 8;
const UDP: u8 = 17;

/// `packet` as it comes out of the link.
pub(crate) fn as_delivered(packet: &[u8], delivery: Delivery) -> Vec<u8> {
    let mut bytes = if delivery.corrupted { damaged(packet, &delivery.bytes) } else { delivery.bytes };
    if delivery.marked {
        mark(&mut bytes);
    }
    bytes
}

/// The damage goes to the payload of UDP, and the checksum is that of the damaged: what is left of headers as they
/// were meets the program that listens, instead of being thrown away by the kernel. Other packets are left whole.
fn damaged(packet: &[u8], damaged: &[u8]) -> Vec<u8> {
    let mut bytes = packet.to_vec();
    let Some(udp) = udp_header(packet) else { return bytes };
    let payload = udp + UDP_HEADER;
    // One byte is left: nobody hears of a datagram without any.
    bytes.truncate(damaged.len().max(payload + 1));
    for (into, &from) in bytes.iter_mut().zip(damaged).skip(payload) {
        *into = from;
    }
    if bytes == packet && payload < bytes.len() {
        // It hit the headers only.
        *bytes.last_mut().expect("there is a payload") ^= 1;
    }
    set_lengths(&mut bytes, udp);
    bytes
}

fn is_v4(packet: &[u8]) -> bool {
    packet[0] >> 4 == 4
}

/// Where the header of UDP begins, if the packet is a whole one of UDP.
fn udp_header(packet: &[u8]) -> Option<usize> {
    let (protocol, at) = match packet.first()? >> 4 {
        4 => (*packet.get(9)?, usize::from(packet[0] & 0xf) * 4),
        6 => (*packet.get(6)?, IPV6_HEADER),
        _ => return None,
    };
    (protocol == UDP && at >= IPV4_HEADER_MIN && packet.len() >= at + UDP_HEADER).then_some(at)
}

fn set_lengths(packet: &mut [u8], udp: usize) {
    let (whole, inside) = (packet.len() as u16, (packet.len() - udp) as u16);
    if is_v4(packet) {
        packet[2..4].copy_from_slice(&whole.to_be_bytes());
        set_header_checksum(packet);
    } else {
        packet[4..6].copy_from_slice(&inside.to_be_bytes());
    }
    packet[udp + 4..udp + 6].copy_from_slice(&inside.to_be_bytes());
    packet[udp + 6..udp + 8].fill(0);
    let addresses = if is_v4(packet) { &packet[12..20] } else { &packet[8..40] };
    let pseudo = sum(addresses) + u64::from(UDP) + u64::from(inside);
    // Zero would say that there is none.
    let checksum = match folded(pseudo + sum(&packet[udp..])) {
        0 => 0xffff,
        checksum => checksum,
    };
    packet[udp + 6..udp + 8].copy_from_slice(&checksum.to_be_bytes());
}

fn mark(packet: &mut [u8]) {
    match packet.first().map(|first| first >> 4) {
        Some(4) if packet[1] & 0b11 != 0 => {
            packet[1] |= 0b11;
            set_header_checksum(packet);
        }
        Some(6) if packet[1] & 0b11_0000 != 0 => packet[1] |= 0b11_0000,
        _ => {}
    }
}

fn set_header_checksum(packet: &mut [u8]) {
    let header = usize::from(packet[0] & 0xf) * 4;
    packet[10..12].fill(0);
    let checksum = folded(sum(&packet[..header]));
    packet[10..12].copy_from_slice(&checksum.to_be_bytes());
}

fn sum(bytes: &[u8]) -> u64 {
    bytes
        .chunks(2)
        .map(|pair| u64::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)])))
        .sum()
}

/// RFC 1071.
fn folded(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}
