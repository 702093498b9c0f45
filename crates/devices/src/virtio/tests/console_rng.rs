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
        let piece = console.take_output(&mut rings);
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
    assert_eq!(console.input(&mut rings, b"hello world"), 11);
    assert_eq!(console.input(&mut rings, &vec![0; 1 << 20]), (64 << 10) - 11);
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
