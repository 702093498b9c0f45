//! Frames from a guest to its network: Ethernet, ARP, IPv4, TCP with its options, UDP, DHCP, DNS, ICMP, and the card's header.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    viv_net::switch::parse_frame(data);
    viv_net::offload::finish_checksum(&mut data.to_vec());
});
