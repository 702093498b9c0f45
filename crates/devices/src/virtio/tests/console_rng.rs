use super::*;

#[test]
fn console_output_comes_out_in_order_and_whole() {
    let mut driver = on_pci(Console::new(80, 25));
    let long: Vec<u8> = (0..900_000u32).map(|i| (i % 251) as u8).collect();
    let buffer = driver.buffer(&long);
    let short = driver.buffer(b"end");
    driver.submit(1, &[buffer], &[]).unwrap();
    driver.submit(1, &[short], &[]).unwrap();
    let mut output = Vec::new();
    loop {
        let (console, mut rings) = driver.transport.device();
        let piece = console.take_output(&mut rings, 0);
        if piece.is_empty() {
            break;
        }
        output.extend(piece);
    }
    assert_eq!(output.len(), long.len() + 3);
    assert!(output.starts_with(&long) && output.ends_with(b"end"));
    assert_eq!(driver.queues[1].take_used().map(|used| used.1), Some(0));
    assert!(driver.queues[1].take_used().is_some());
}

#[test]
fn console_input_waits_for_buffers_and_takes_no_more_than_it_may() {
    let mut driver = on_pci(Console::new(80, 25));
    let (console, mut rings) = driver.transport.device();
    assert_eq!(console.input(&mut rings, 0, b"hello world"), 11);
    assert_eq!(console.input(&mut rings, 0, &vec![0; 1 << 20]), (64 << 10) - 11);
    let buffer = driver.buffer(&[0; 11]);
    driver.submit(0, &[], &[buffer]).unwrap();
    assert_eq!(driver.content(buffer), b"hello world");
    assert_eq!(driver.queues[0].take_used().map(|used| used.1), Some(11));
}

#[test]
fn a_new_console_size_is_a_configuration_change() {
    let mut driver = on_pci(Console::new(80, 25));
    let (console, mut rings) = driver.transport.device();
    console.resize(&mut rings, 132, 50);
    assert_eq!((driver.transport.config(0), driver.transport.config(2)), (132, 50));
    assert_eq!(driver.transport.bar_read(0, 0x1000, 1), 2);
}

/// A message of the control queues (§5.3.6.2).
fn message(port: u32, event: u16, value: u16, rest: &[u8]) -> Vec<u8> {
    [&port.to_le_bytes()[..], &event.to_le_bytes(), &value.to_le_bytes(), rest].concat()
}

#[test]
fn named_ports_are_announced_opened_and_carry_bytes_of_their_own() {
    let mut driver = on_pci(Console::with_ports(80, 25, &["one".to_string(), "two".to_string()]));
    assert_eq!((driver.queues.len(), driver.transport.config(4)), (8, 3));
    let buffers: Vec<_> = (0..16).map(|_| driver.buffer(&[0; 64])).collect();
    for buffer in &buffers {
        driver.submit(2, &[], &[*buffer]).unwrap();
    }
    let mut next = 0;
    // What has come since the last call.
    let mut heard = |driver: &mut MockDriver<VirtioPci<Console>>| {
        let mut messages = Vec::new();
        while let Some((_, len)) = driver.queues[2].take_used() {
            messages.push(driver.content(buffers[next])[..len as usize].to_vec());
            next += 1;
        }
        messages
    };
    let say = |driver: &mut MockDriver<VirtioPci<Console>>, port, event, value| {
        let buffer = driver.buffer(&message(port, event, value, &[]));
        driver.submit(3, &[buffer], &[]).unwrap();
    };
    // Somebody on the host has it open before there is a driver for it.
    let (console, mut rings) = driver.transport.device();
    console.set_open(&mut rings, 2, true);
    heard(&mut driver);
    say(&mut driver, 0, 0, 1);
    assert_eq!(heard(&mut driver), [0, 1, 2].map(|port| message(port, 1, 1, &[])));
    say(&mut driver, 0, 3, 1);
    // Columns, then rows.
    assert_eq!(heard(&mut driver), [message(0, 4, 1, &[]), message(0, 5, 0, &[80, 0, 25, 0])]);
    say(&mut driver, 1, 3, 1);
    assert_eq!(heard(&mut driver), [message(1, 7, 1, b"one")]);
    say(&mut driver, 2, 3, 1);
    assert_eq!(heard(&mut driver), [message(2, 7, 1, b"two"), message(2, 6, 1, &[])]);
    let (console, mut rings) = driver.transport.device();
    console.resize(&mut rings, 132, 50);
    console.set_open(&mut rings, 1, true);
    console.set_open(&mut rings, 1, true);
    console.set_open(&mut rings, 1, false);
    let size = message(0, 5, 0, &[132, 0, 50, 0]);
    assert_eq!(heard(&mut driver), [size, message(1, 6, 1, &[]), message(1, 6, 0, &[])]);
    let (console, mut rings) = driver.transport.device();
    assert_eq!(console.input(&mut rings, 2, b"too early"), 0);
    say(&mut driver, 2, 6, 1);
    assert!(driver.transport.device().0.guest_has_open(2) && !driver.transport.device().0.guest_has_open(1));

    // Port 2 has queues 6 and 7.
    let (buffer, room) = (driver.buffer(b"from the guest"), driver.buffer(&[0; 8]));
    driver.submit(7, &[buffer], &[]).unwrap();
    driver.submit(6, &[], &[room]).unwrap();
    let (console, mut rings) = driver.transport.device();
    assert!(console.take_moved(2) && !console.take_moved(2) && !console.has_output(1));
    assert_eq!(console.take_output(&mut rings, 2), b"from the guest");
    assert_eq!(console.input(&mut rings, 2, b"from the host"), 13);
    assert_eq!(driver.content(room), b"from the");
    say(&mut driver, 2, 6, 0);
    let room = driver.buffer(&[0; 8]);
    driver.submit(6, &[], &[room]).unwrap();
    assert_eq!(driver.content(room), [0; 8], "what was not read is not for the next one");
    // Ports that there are not, and messages that are none.
    say(&mut driver, 77, 3, 1);
    say(&mut driver, u32::MAX, 6, 1);
    let short = driver.buffer(&[1, 2, 3]);
    driver.submit(3, &[short], &[]).unwrap();
    assert_eq!(heard(&mut driver), Vec::<Vec<u8>>::new());
}

#[test]
fn a_driver_that_reads_no_messages_makes_no_heap_of_them() {
    let mut driver = on_pci(Console::with_ports(80, 25, &["one".to_string()]));
    for _ in 0..1000 {
        let buffer = driver.buffer(&message(0, 0, 1, &[]));
        driver.submit(3, &[buffer], &[]).unwrap();
        while driver.queues[3].take_used().is_some() {}
    }
    let mut count = 0;
    loop {
        let buffer = driver.buffer(&[0; 64]);
        driver.submit(2, &[], &[buffer]).unwrap();
        if driver.queues[2].take_used().is_none() {
            break;
        }
        count += 1;
    }
    assert_eq!(count, 256);
}

#[test]
fn rng_writes_no_more_than_it_was_given_and_nothing_outside() {
    let mut driver = on_mmio(Rng::new());
    let buffer = driver.buffer(&[0; 64]);
    driver.submit(0, &[], &[(buffer.0, 32)]).unwrap();
    assert_eq!(driver.transport.device().0.demand(), Some(32));
    let (rng, mut rings) = driver.transport.device();
    rng.provide(&mut rings, &[5; 64]);
    assert_eq!(driver.content(buffer), [[5; 32], [0; 32]].concat());
    assert_eq!(driver.queues[0].take_used().map(|used| used.1), Some(32));
    assert_eq!(driver.transport.device().0.demand(), None);
}
