//! The console (virtio 1.3 §5.3): port 0 is the console itself, with its size; others, which have names, are streams of bytes
//! between programs of guest and host.
//!
//! Several ports and their control queues (F_MULTIPORT) are offered only if there are named ones.
mod port;

use super::{Rings, VirtioDevice, another_kind, read_config_bytes};
use crate::{Unfit, Unsaved};
use port::{OUTPUT_MAX, Port};
use std::collections::VecDeque;
use viv_arch::pci::CLASS_COMMUNICATION;
use viv_arch::saved::VirtioDeviceSaved;
use viv_arch::virtio::console::event;
use viv_arch::virtio::{console as reg, device_type};

const QUEUE_SIZE: u16 = 128;
/// Messages that wait for the guest's control buffers; a guest that provides none loses the newest.
const CONTROL_MAX: usize = 256;
/// Most named ports of one console.
pub const CONSOLE_PORTS_MAX: usize = 8;

/// A console.
#[derive(Debug)]
pub struct Console {
    cols: u16,
    rows: u16,
    /// Port 0, which has no name, and the others.
    ports: Vec<(String, Port)>,
    /// Messages for the guest.
    control: VecDeque<Vec<u8>>,
}

impl Console {
    /// A console of this size in characters, with port 0 only.
    pub fn new(cols: u16, rows: u16) -> Console {
        Console::with_ports(cols, rows, &[])
    }

    /// The same with ports that have names: number 1 and so on, [`CONSOLE_PORTS_MAX`] at most.
    pub fn with_ports(cols: u16, rows: u16, names: &[String]) -> Console {
        let mut ports = vec![(String::new(), Port::new(reg::QUEUE_RECEIVE))];
        let numbers = (reg::QUEUE_RECEIVE_1..).step_by(2);
        let named = names.iter().take(CONSOLE_PORTS_MAX).zip(numbers);
        ports.extend(named.map(|(name, receiveq)| (name.clone(), Port::new(receiveq))));
        Console { cols, rows, ports, control: VecDeque::new() }
    }

    fn port(&mut self, number: usize) -> Option<&mut Port> {
        self.ports.get_mut(number).map(|(_, port)| port)
    }

    /// Takes what the guest wrote to a port since the last call; more may wait, see [`Console::has_output`].
    pub fn take_output(&mut self, rings: &mut Rings<'_>, port: usize) -> Vec<u8> {
        self.port(port).map(|port| port.take_output(rings)).unwrap_or_default()
    }

    /// Whether the guest wrote something to a port that was not taken.
    pub fn has_output(&self, port: usize) -> bool {
        self.ports.get(port).is_some_and(|(_, port)| port.has_output())
    }

    /// Bytes for the guest; returns how many were taken. The rest waits for the guest to read. A named port takes none that nobody
    /// in the guest has open: its driver would throw them away (§5.3.6.1).
    pub fn input(&mut self, rings: &mut Rings<'_>, number: usize, bytes: &[u8]) -> usize {
        match self.port(number) {
            Some(port) if number == 0 || port.guest_open => port.input(rings, bytes),
            _ => 0,
        }
    }

    /// Bytes that [`Console::input`] would take now.
    pub fn input_room(&self, port: usize) -> usize {
        self.ports.get(port).map_or(0, |(_, port)| port.input_room())
    }

    /// Whether the guest has used a port's queues since the last call.
    pub fn take_moved(&mut self, port: usize) -> bool {
        self.port(port).is_some_and(|port| std::mem::take(&mut port.moved))
    }

    /// Somebody on the host opens or closes a port.
    pub fn set_open(&mut self, rings: &mut Rings<'_>, number: usize, open: bool) {
        let Some(port) = self.port(number) else { return };
        if std::mem::replace(&mut port.host_open, open) != open && multiport(rings) {
            self.tell(rings, number, event::PORT_OPEN, open.into(), &[]);
        }
    }

    /// Whether somebody in the guest has a port open.
    pub fn guest_has_open(&self, port: usize) -> bool {
        self.ports.get(port).is_some_and(|(_, port)| port.guest_open)
    }

    /// The window of the user has another size.
    pub fn resize(&mut self, rings: &mut Rings<'_>, cols: u16, rows: u16) {
        if (self.cols, self.rows) != (cols, rows) {
            (self.cols, self.rows) = (cols, rows);
            rings.config_changed();
            if multiport(rings) {
                self.tell_size(rings);
            }
        }
    }

    /// Columns before rows, as the text has it (§5.3.6.2). Linux of before 2025 takes them the other way round.
    fn tell_size(&mut self, rings: &mut Rings<'_>) {
        let ([c0, c1], [r0, r1]) = (self.cols.to_le_bytes(), self.rows.to_le_bytes());
        self.tell(rings, 0, event::RESIZE, 0, &[c0, c1, r0, r1]);
    }

    /// Queues a message: id u32, event u16, value u16, and what belongs to it (§5.3.6.2).
    fn tell(&mut self, rings: &mut Rings<'_>, port: usize, event: u16, value: u16, rest: &[u8]) {
        if self.control.len() < CONTROL_MAX {
            let mut message = (port as u32).to_le_bytes().to_vec();
            message.extend(event.to_le_bytes().into_iter().chain(value.to_le_bytes()));
            message.extend(rest);
            self.control.push_back(message);
        }
        self.send_control(rings);
    }

    fn send_control(&mut self, rings: &mut Rings<'_>) {
        while let Some(message) = self.control.front() {
            let Some(chain) = rings.pop(reg::QUEUE_CONTROL_RECEIVE) else { return };
            let written = chain.write_at(rings.memory(), 0, message);
            rings.push(reg::QUEUE_CONTROL_RECEIVE, chain.head(), written as u32);
            self.control.pop_front();
        }
    }

    /// Messages of the guest.
    fn take_control(&mut self, rings: &mut Rings<'_>) {
        for _ in 0..QUEUE_SIZE {
            let Some(chain) = rings.pop(reg::QUEUE_CONTROL_TRANSMIT) else { return };
            let mut message = [0; reg::CONTROL_LEN];
            let len = chain.read_at(rings.memory(), 0, &mut message);
            rings.push(reg::QUEUE_CONTROL_TRANSMIT, chain.head(), 0);
            if len == message.len() {
                self.obey(rings, message);
            }
        }
    }

    fn obey(&mut self, rings: &mut Rings<'_>, message: [u8; reg::CONTROL_LEN]) {
        let [i0, i1, i2, i3, e0, e1, v0, v1] = message;
        let number = u32::from_le_bytes([i0, i1, i2, i3]) as usize;
        match (u16::from_le_bytes([e0, e1]), u16::from_le_bytes([v0, v1])) {
            (event::DEVICE_READY, 1) => {
                for number in 0..self.ports.len() {
                    self.tell(rings, number, event::PORT_ADD, 1, &[]);
                }
            }
            (event::PORT_READY, 1) if number == 0 => {
                self.tell(rings, number, event::CONSOLE_PORT, 1, &[]);
                self.tell_size(rings);
            }
            (event::PORT_READY, 1) => {
                let Some((name, port)) = self.ports.get(number) else { return };
                let (name, open) = (name.clone(), port.host_open);
                self.tell(rings, number, event::PORT_NAME, 1, name.as_bytes());
                if open {
                    self.tell(rings, number, event::PORT_OPEN, 1, &[]);
                }
            }
            (event::PORT_OPEN, value) => {
                if let Some(port) = self.port(number) {
                    port.set_guest_open(value == 1);
                }
            }
            _ => {}
        }
    }

    /// The port that a queue belongs to, and whether the guest receives by it.
    fn of_queue(&mut self, queue: u16) -> Option<(&mut Port, bool)> {
        let number = match queue {
            reg::QUEUE_RECEIVE | reg::QUEUE_TRANSMIT => 0,
            _ => usize::from(queue.checked_sub(reg::QUEUE_RECEIVE_1)?) / 2 + 1,
        };
        Some((self.port(number)?, queue.is_multiple_of(2)))
    }
}

fn multiport(rings: &Rings<'_>) -> bool {
    rings.features() & reg::F_MULTIPORT != 0
}

impl VirtioDevice for Console {
    fn device_type(&self) -> u16 {
        device_type::CONSOLE
    }
    fn pci_class(&self) -> u32 {
        CLASS_COMMUNICATION
    }
    fn features(&self) -> u64 {
        let several = if self.ports.len() > 1 { reg::F_MULTIPORT } else { 0 };
        reg::F_SIZE | reg::F_EMERG_WRITE | several
    }
    fn queue_sizes(&self) -> Vec<u16> {
        let control = usize::from(self.ports.len() > 1);
        vec![QUEUE_SIZE; (self.ports.len() + control) * 2]
    }
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let mut config = [0; reg::CONFIG_LEN];
        config[..2].copy_from_slice(&self.cols.to_le_bytes());
        config[2..4].copy_from_slice(&self.rows.to_le_bytes());
        config[4..8].copy_from_slice(&(self.ports.len() as u32).to_le_bytes());
        read_config_bytes(&config, offset, data);
    }
    fn write_config(&mut self, offset: u64, data: &[u8]) {
        if let (reg::CONFIG_EMERG_WR, Some(&byte), Some(port)) = (offset, data.first(), self.port(0))
            && port.output.len() < OUTPUT_MAX
        {
            port.output.push(byte);
        }
    }
    fn activate(&mut self, rings: &mut Rings<'_>) {
        for (_, port) in &mut self.ports {
            port.receive(rings);
            port.transmit(rings);
            port.moved = true;
        }
        self.take_control(rings);
        self.send_control(rings);
    }
    fn notified(&mut self, queue: u16, rings: &mut Rings<'_>) {
        match (queue, self.ports.len()) {
            (reg::QUEUE_CONTROL_RECEIVE, 2..) => self.send_control(rings),
            (reg::QUEUE_CONTROL_TRANSMIT, 2..) => self.take_control(rings),
            _ => {
                let Some((port, receives)) = self.of_queue(queue) else { return };
                port.moved = true;
                if receives { port.receive(rings) } else { port.transmit(rings) }
            }
        }
    }
    fn save(&self) -> Result<VirtioDeviceSaved, Unsaved> {
        let mut ports = self.ports.iter().map(|(name, port)| port.save(name));
        let console = ports.next().unwrap_or_default();
        Ok(VirtioDeviceSaved::Console {
            cols: self.cols,
            rows: self.rows,
            output: console.output,
            input: console.input,
            stalled: console.stalled,
            partial: console.partial,
            ports: ports.collect(),
            control: self.control.iter().cloned().collect(),
        })
    }
    fn load(&mut self, saved: &VirtioDeviceSaved, rings: &mut Rings<'_>) -> Result<(), Unfit> {
        let VirtioDeviceSaved::Console { cols, rows, output, input, stalled, partial, ports, control } =
            saved
        else {
            return Err(another_kind());
        };
        let names = || self.ports.iter().skip(1).map(|(name, _)| name);
        if !names().eq(ports.iter().map(|port| &port.name)) {
            return Err(Unfit::new("its console has other ports"));
        }
        let console = viv_arch::saved::ConsolePortSaved {
            output: output.clone(),
            input: input.clone(),
            stalled: *stalled,
            partial: partial.clone(),
            ..Default::default()
        };
        for ((_, port), saved) in self.ports.iter_mut().zip(std::iter::once(&console).chain(ports)) {
            port.load(saved, rings)?;
        }
        (self.cols, self.rows) = (*cols, *rows);
        self.control = control.iter().take(CONTROL_MAX).cloned().collect();
        for number in (1..).zip(ports).filter(|(_, saved)| saved.host_open).map(|(number, _)| number) {
            self.tell(rings, number, event::PORT_OPEN, 0, &[]);
        }
        Ok(())
    }
    fn reset(&mut self) {
        self.ports.iter_mut().for_each(|(_, port)| port.reset());
        self.control.clear();
    }
}
