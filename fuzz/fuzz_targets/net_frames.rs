//! Frames from a guest to its network: Ethernet, ARP, IPv4 and IPv6, neighbours, TCP with its options, UDP, DHCP, DNS, ICMP, and the
//! card's header; alone, and as messages of many packets between a VM's process and its switch.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    viv_net::switch::parse_frame(data);
    viv_net::offload::finish_checksum(&mut data.to_vec());
    let mut message = viv_net::port::Message::from(data.to_vec());
    while let Some(packet) = message.front_mut() {
        viv_net::offload::finish_checksum(packet);
        viv_net::switch::parse_frame(packet);
        message.pop();
    }
    viv_net::capture::Record::parse(data);
});
