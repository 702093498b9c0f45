//! Interrupt messages on their way to local APICs, and who takes them (SDM vol. 3 §11.6 "Issuing
//! interprocessor interrupts", §11.11 "Message signalled interrupts").
//!
//! The IOAPIC, MSI writes and the ICR of a local APIC all give a [`Message`]; [`route`] and [`route_ipi`]
//! say which local APICs it is for. Both are pure: the machine takes a [`LapicView`] of each first.

/// Delivery modes (SDM vol. 3 figure 11-12).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeliveryMode {
    /// The vector, to all that match.
    Fixed,
    /// The vector, to the one that runs at the lowest priority.
    LowestPriority,
    /// System management interrupt.
    Smi,
    /// Non-maskable interrupt.
    Nmi,
    /// INIT.
    Init,
    /// Start-up IPI: the vector is the page of the first instruction.
    Startup,
    /// The vector comes from the 8259A.
    ExtInt,
    /// Encoding 3, reserved: nothing is delivered.
    Reserved,
}

impl DeliveryMode {
    /// From the 3-bit field of ICR, LVT, redirection entry or MSI data.
    pub fn from_bits(bits: u8) -> DeliveryMode {
        match bits & 7 {
            0 => DeliveryMode::Fixed,
            1 => DeliveryMode::LowestPriority,
            2 => DeliveryMode::Smi,
            4 => DeliveryMode::Nmi,
            5 => DeliveryMode::Init,
            6 => DeliveryMode::Startup,
            7 => DeliveryMode::ExtInt,
            _ => DeliveryMode::Reserved,
        }
    }

    /// Whether the message asks for a vector in the IRR.
    pub fn is_vectored(self) -> bool {
        matches!(self, DeliveryMode::Fixed | DeliveryMode::LowestPriority)
    }
}

/// One interrupt message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message {
    /// APIC ID (physical) or set of them (logical).
    pub destination: u32,
    /// The destination has 32 bits (x2APIC's ICR); else 8, and 0xff is everybody.
    pub wide: bool,
    /// Logical destination mode.
    pub logical: bool,
    /// How to deliver.
    pub mode: DeliveryMode,
    /// The vector.
    pub vector: u8,
    /// Level-triggered: its EOI is broadcast to the IOAPICs.
    pub level: bool,
}

impl Message {
    /// The message of a memory write by a device (SDM vol. 3 §11.11.1, §11.11.2). Address bits 11 to 5
    /// carry seven more bits of the destination for guests that were told so (KVM's "extended destination ID").
    pub fn from_msi(address: u64, data: u32) -> Message {
        let low = ((address >> 12) & 0xff) as u32;
        let high = ((address >> 5) & 0x7f) as u32;
        Message {
            destination: high << 8 | low,
            wide: high != 0,
            logical: address & 4 != 0,
            mode: DeliveryMode::from_bits((data >> 8) as u8),
            vector: data as u8,
            level: data & (1 << 15) != 0,
        }
    }
}

/// Destination shorthands of the ICR (SDM vol. 3 figure 11-12).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shorthand {
    /// The message's own destination.
    None,
    /// The sender.
    SelfOnly,
    /// Everybody with the sender.
    All,
    /// Everybody but the sender.
    Others,
}

/// An interprocessor interrupt as a local APIC sends it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ipi {
    /// The message.
    pub message: Message,
    /// For whom, before the message's own destination.
    pub shorthand: Shorthand,
}

/// How a local APIC compares logical destinations (SDM vol. 3 §11.6.2.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogicalModel {
    /// 8 bits, one per APIC.
    Flat(u8),
    /// High nibble: the cluster; low nibble: one bit per APIC in it.
    Cluster(u8),
    /// x2APIC: high half the cluster, low half one bit per APIC in it.
    X2apic(u32),
}

/// What routing must know of a local APIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LapicView {
    /// APIC ID.
    pub id: u32,
    /// Its logical ID.
    pub logical: LogicalModel,
    /// Enabled in APIC_BASE: it takes INIT, SIPI and NMI.
    pub present: bool,
    /// Software-enabled in the spurious-interrupt register: it takes vectors too.
    pub accepts_vectors: bool,
    /// Processor priority: the lowest takes lowest-priority messages.
    pub priority: u8,
}

impl LapicView {
    /// Whether the message's destination means this APIC.
    fn matches(&self, message: &Message) -> bool {
        let everybody = if message.wide { u32::MAX } else { 0xff };
        if message.destination == everybody {
            return true;
        }
        if !message.logical {
            return self.id == message.destination;
        }
        match self.logical {
            LogicalModel::Flat(id) => message.destination <= 0xff && message.destination as u8 & id != 0,
            LogicalModel::Cluster(id) => {
                let destination = message.destination as u8;
                message.destination <= 0xff
                    && (destination >> 4 == id >> 4 || destination >> 4 == 0xf)
                    && destination & id & 0xf != 0
            }
            LogicalModel::X2apic(id) => {
                message.destination >> 16 == id >> 16 && message.destination & id & 0xffff != 0
            }
        }
    }

    fn can_take(&self, mode: DeliveryMode) -> bool {
        self.present && (self.accepts_vectors || !mode.is_vectored())
    }
}

/// Indexes of the local APICs that take `message`.
pub fn route(lapics: &[LapicView], message: &Message) -> Vec<usize> {
    let matching = lapics
        .iter()
        .enumerate()
        .filter(|(_, lapic)| lapic.can_take(message.mode) && lapic.matches(message))
        .map(|(index, _)| index);
    match message.mode {
        DeliveryMode::Reserved => Vec::new(),
        DeliveryMode::LowestPriority => lowest(lapics, matching.collect(), message.vector),
        _ => matching.collect(),
    }
}

/// Of `candidates` the one with the lowest priority; equal ones share the vectors among them.
fn lowest(lapics: &[LapicView], candidates: Vec<usize>, vector: u8) -> Vec<usize> {
    let priority = |index: &usize| lapics.get(*index).map_or(u8::MAX, |lapic| lapic.priority >> 4);
    let Some(least) = candidates.iter().map(priority).min() else {
        return candidates;
    };
    let equal: Vec<usize> = candidates.into_iter().filter(|index| priority(index) == least).collect();
    let turn = usize::from(vector) % equal.len().max(1);
    equal.into_iter().skip(turn).take(1).collect()
}

/// Indexes of the local APICs that take an interprocessor interrupt of the one at index `sender`.
pub fn route_ipi(lapics: &[LapicView], sender: usize, ipi: &Ipi) -> Vec<usize> {
    let all = || (0..lapics.len()).filter(|index| lapics[*index].can_take(ipi.message.mode));
    if ipi.message.mode == DeliveryMode::Reserved {
        return Vec::new();
    }
    let targets: Vec<usize> = match ipi.shorthand {
        Shorthand::None => return route(lapics, &ipi.message),
        Shorthand::SelfOnly => all().filter(|index| *index == sender).collect(),
        Shorthand::All => all().collect(),
        Shorthand::Others => all().filter(|index| *index != sender).collect(),
    };
    match ipi.message.mode {
        DeliveryMode::LowestPriority => lowest(lapics, targets, ipi.message.vector),
        _ => targets,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn view(id: u32, logical: LogicalModel) -> LapicView {
        LapicView { id, logical, present: true, accepts_vectors: true, priority: 0 }
    }
    fn message(destination: u32, logical: bool) -> Message {
        Message { destination, wide: false, logical, mode: DeliveryMode::Fixed, vector: 0x40, level: false }
    }
    fn flat() -> Vec<LapicView> {
        (0..4).map(|id| view(id, LogicalModel::Flat(1 << id))).collect()
    }

    #[test]
    fn physical_destinations_name_one_or_everybody() {
        assert_eq!(route(&flat(), &message(2, false)), [2]);
        assert_eq!(route(&flat(), &message(9, false)), [] as [usize; 0]);
        assert_eq!(route(&flat(), &message(0xff, false)), [0, 1, 2, 3]);
        let wide = Message { wide: true, ..message(0xff, false) };
        assert_eq!(route(&flat(), &wide), [] as [usize; 0], "255 is an ordinary ID in x2APIC mode");
        assert_eq!(route(&flat(), &Message { destination: u32::MAX, ..wide }), [0, 1, 2, 3]);
    }

    #[test]
    fn logical_destinations_are_sets() {
        assert_eq!(route(&flat(), &message(0b0101, true)), [0, 2]);
        let clusters = [0x11, 0x12, 0x21, 0x22].map(LogicalModel::Cluster).map(|logical| view(0, logical));
        assert_eq!(route(&clusters, &message(0x23, true)), [2, 3]);
        assert_eq!(route(&clusters, &message(0xf1, true)), [0, 2]);
        let x2 = [0x1_0001, 0x1_0002, 0x2_0001].map(LogicalModel::X2apic).map(|logical| view(0, logical));
        let wide = Message { wide: true, ..message(0x1_0003, true) };
        assert_eq!(route(&x2, &wide), [0, 1]);
    }

    #[test]
    fn lowest_priority_takes_one_that_is_enabled() {
        let mut views = flat();
        views[0].priority = 0x40;
        views[1].accepts_vectors = false;
        let lowest = Message { mode: DeliveryMode::LowestPriority, ..message(0xf, true) };
        assert_eq!(route(&views, &lowest), [2]);
        assert_eq!(route(&views, &Message { vector: 0x41, ..lowest }), [3]);
    }

    #[test]
    fn shorthands_need_no_destination() {
        let ipi = |shorthand| Ipi { message: message(0, false), shorthand };
        assert_eq!(route_ipi(&flat(), 1, &ipi(Shorthand::SelfOnly)), [1]);
        assert_eq!(route_ipi(&flat(), 1, &ipi(Shorthand::All)), [0, 1, 2, 3]);
        assert_eq!(route_ipi(&flat(), 1, &ipi(Shorthand::Others)), [0, 2, 3]);
        assert_eq!(route_ipi(&flat(), 1, &ipi(Shorthand::None)), [0]);
    }

    #[test]
    fn an_msi_is_decoded_by_the_manual() {
        let msi = Message::from_msi(0xfee0_3004, 0x8151);
        assert_eq!(
            msi,
            Message {
                destination: 3,
                wide: false,
                logical: true,
                mode: DeliveryMode::LowestPriority,
                vector: 0x51,
                level: true,
            }
        );
        assert_eq!(Message::from_msi(0xfee0_1020, 0x30).destination, 0x101);
    }

    proptest! {
        /// Nobody takes a vector who is not software-enabled, and a lowest-priority message has at most one taker
        /// (SDM 11.4.7.2, 11.6.2.4).
        #[test]
        fn vectors_go_to_enabled_apics_only(
            enabled in any::<u16>(), destination in any::<u32>(), wide: bool, logical: bool, mode in 0u8..8,
            sender in 0usize..20, shorthand in 0u8..4,
        ) {
            let views: Vec<LapicView> = (0..16u32)
                .map(|id| LapicView {
                    accepts_vectors: enabled & (1 << id) != 0,
                    ..view(id, LogicalModel::X2apic((id >> 4) << 16 | 1 << (id & 15)))
                })
                .collect();
            let mode = DeliveryMode::from_bits(mode);
            let message = Message { wide, mode, ..message(destination, logical) };
            let shorthand = [Shorthand::None, Shorthand::SelfOnly, Shorthand::All, Shorthand::Others]
                [usize::from(shorthand)];
            let takers = route_ipi(&views, sender, &Ipi { message, shorthand });
            if mode.is_vectored() {
                prop_assert!(takers.iter().all(|index| views[*index].accepts_vectors));
            }
            if mode == DeliveryMode::LowestPriority {
                prop_assert!(takers.len() <= 1);
            }
        }
    }
}
