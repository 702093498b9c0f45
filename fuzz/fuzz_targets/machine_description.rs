//! Descriptions of machines: OVF, libvirt's XML, manifests, Proxmox's and Vagrant's settings.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| viv_foreign::trial::read_description(data));
