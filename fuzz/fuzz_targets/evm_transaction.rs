//! Raw transactions: what is read is written back as it was, and its sender does not depend on who asks.
#![no_main]
use alloy_eips::eip2718::Encodable2718;
use revm::primitives::hardfork::SpecId;
use viv_evm::chain::admit;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Ok(tx) = admit::decode(data, SpecId::OSAKA) else { return };
    // A blob transaction leaves its blobs behind.
    if data.first() != Some(&3) {
        assert_eq!(tx.encoded_2718(), data);
    }
});
