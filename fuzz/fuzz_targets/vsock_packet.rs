//! The streams of a guest: its packets on one side, the host's calls on the other.
#![no_main]
use viv_devices::virtio::vsock::{Connections, Header, StreamId};

const HEADER_LEN: usize = 44;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let mut streams = Connections::new(3);
    let mut rest = data;
    while let Some((what, more)) = rest.split_first() {
        rest = more;
        let stream = StreamId(u64::from(what >> 4));
        match what % 16 {
            0..=7 => {
                let Some((header, more)) = rest.split_first_chunk::<HEADER_LEN>() else { return };
                rest = more;
                let mut header = Header::from_bytes(header);
                // Mostly a packet that is for us.
                if what % 8 != 0 {
                    (header.src_cid, header.dst_cid) = (3, 2);
                    (header.src_port, header.dst_port) = (header.src_port % 4, header.dst_port % 4);
                    header.socket_type = 1;
                    header.op %= 10;
                }
                let payload = rest.get(..usize::from(*what)).unwrap_or_default();
                streams.handle(&header, payload);
            }
            8 => {
                let _ = streams.connect(u32::from(what >> 4));
            }
            9 => streams.accept(stream),
            10 => {
                let _ = streams.send(stream, rest.get(..64).unwrap_or(rest));
            }
            11 => drop(streams.receive(stream, 100)),
            12 => streams.finish(stream),
            13 => streams.close(stream),
            14 => streams.reset(stream),
            _ => {
                let _ = streams.take_events();
                while streams.next_packet(256).is_some() {}
                if what >> 4 == 15 {
                    streams.guest_reset();
                }
            }
        }
    }
});
