//! The agent's protocol, in both directions, in pieces of any size.
#![no_main]
use viv_api::agent::{Decoder, Input, Message, Output, Reply, Request, read_line};
use viv_api::websocket::{self, Say};

fn decode<M: Message>(data: &[u8], piece: usize) {
    let mut decoder = Decoder::new();
    for piece in data.chunks(piece) {
        decoder.push(piece);
        loop {
            match decoder.next::<M>() {
                Ok(Some(_)) => {}
                Ok(None) => break,
                Err(_) => return,
            }
        }
    }
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Some((piece, data)) = data.split_first() else { return };
    let piece = 1 + usize::from(*piece);
    decode::<Input>(data, piece);
    decode::<Output>(data, piece);
    let _ = read_line::<Request>(&mut &*data);
    let _ = read_line::<Reply>(&mut &*data);
    if let Some(input) = websocket::input(data) {
        decode::<Input>(&input.to_bytes(), piece);
    }
    let _ = serde_json::from_slice::<Say>(data);
    let _ = websocket::reason(&String::from_utf8_lossy(data));
});
