//! A machine that was saved goes on in another one as if nothing had happened: also twice, and beside the first. On the
//! software CPU, or on KVM where `VIV_TEST_ACCEL=kvm` says so (the lab does).
mod kit;

use kit::*;
use viv_model::{End, Kind};

/// Leaves a word in memory, says so, echoes until 'q', and looks whether the word is still there.
fn remembers() -> Vec<u8> {
    // mov dword [0x200000], 0x1234
    let remember = vec![0xc7, 0x04, 0x25, 0x00, 0x00, 0x20, 0x00, 0x34, 0x12, 0x00, 0x00];
    // cmp dword [0x200000], 0x1234; jne over
    let kept = print("kept");
    let mut compare = vec![0x81, 0x3c, 0x25, 0x00, 0x00, 0x20, 0x00, 0x34, 0x12, 0x00, 0x00, 0x75];
    compare.push(kept.len() as u8);
    [SERIAL_SETUP.to_vec(), remember, print("ready."), ECHO.to_vec(), compare, kept, POWER_OFF.to_vec()]
        .concat()
}

#[test]
fn a_saved_machine_goes_on_in_others() {
    let first = Life::start(&remembers());
    first.expect("ready.");
    first.machine.console_input(b"a");
    first.expect("ready.a");
    assert_eq!(first.machine.save(|_, _, _| Ok(())).unwrap_err().kind, Kind::Conflict, "it runs");
    first.machine.pause().unwrap();
    let uptime = first.machine.stats().uptime_ns;
    let (saved, memory) = first.save();
    let json = serde_json::to_vec(&saved).unwrap();
    let saved = serde_json::from_slice(&json).unwrap();
    let second = first.restore(&saved, memory.try_clone().unwrap());
    second.machine.start().unwrap();
    second.machine.console_input(b"second");
    second.expect("second");
    assert!(second.machine.stats().uptime_ns > uptime);
    first.machine.resume().unwrap();
    first.machine.console_input(b"q");
    assert_eq!((first.end(), first.output().as_str()), (End::PowerOff, "ready.aqkept"));
    second.machine.console_input(b"q");
    assert_eq!((second.end(), second.output().as_str()), (End::PowerOff, "secondqkept"));
    // What the second one did to its memory is its own, and a child can be saved in its turn.
    let third = first.restore(&saved, memory);
    third.machine.start().unwrap();
    third.machine.console_input(b"third");
    third.expect("third");
    third.machine.pause().unwrap();
    let (saved, memory) = third.save();
    let fourth = third.restore(&saved, memory);
    fourth.machine.start().unwrap();
    fourth.machine.console_input(b"q");
    assert_eq!((fourth.end(), fourth.output().as_str()), (End::PowerOff, "qkept"));
}

#[test]
fn an_armed_timer_fires_after_the_restore() {
    let first = Life::start(&interrupted_in_a_loop(&print("armed"), 2_000_000_000));
    first.expect("armed");
    // It arms its timer in the next microseconds.
    std::thread::sleep(std::time::Duration::from_millis(200));
    first.machine.pause().unwrap();
    let (saved, memory) = first.save();
    first.machine.kill();
    let second = first.restore(&saved, memory);
    second.machine.start().unwrap();
    assert_eq!(second.end(), End::PowerOff);
}

#[test]
fn a_state_of_another_machine_is_refused() {
    let first = Life::start(&remembers());
    first.expect("ready.");
    first.machine.pause().unwrap();
    let (saved, memory) = first.save();
    let refused = |change: &dyn Fn(&mut viv_arch::saved::MachineSaved)| {
        let mut broken = saved.clone();
        change(&mut broken);
        first.try_restore(&broken, memory.try_clone().unwrap()).unwrap_err()
    };
    let none = refused(&|saved| saved.chips.clear());
    assert!(none.message.contains("ioapic"), "{none}");
    refused(&|saved| saved.cpus.clear());
    refused(&|saved| drop(saved.functions.pop()));
    refused(&|saved| saved.functions[1].0 = 30);
    refused(&|saved| saved.chips.push(("mystery".into(), viv_arch::saved::ChipSaved::PvPanic(0))));
    refused(&|saved| {
        let virtio = saved.functions[1].1.virtio.as_mut().unwrap();
        virtio.virtio.queues[0].ready = true;
        virtio.virtio.queues[0].addresses = [!0xfff; 3];
    });
    memory.set_len(4096).unwrap();
    refused(&|_| ());
}
