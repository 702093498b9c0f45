//! Keys of development: the accounts that every tool for Ethereum knows, and signing and recovering with secp256k1.
use alloy_primitives::{Address, B256, Signature, U256, keccak256};
use hmac::{Hmac, KeyInit, Mac};
use secp256k1::ecdsa::{RecoverableSignature, RecoveryId};
use secp256k1::{Message, PublicKey, SECP256K1, Scalar, SecretKey};
use sha2::Sha512;

/// The words that development tools agree on. Never send anything of value to these accounts.
pub const MNEMONIC: &str = "test test test test test test test test test test test junk";
/// Rounds of PBKDF2 from words to a seed (BIP-39, "From mnemonic to seed").
const ROUNDS: u32 = 2048;
/// The path of Ethereum's accounts (BIP-44): 44', 60', 0', 0, and then the account.
const PATH: [u32; 4] = [44 | HARDENED, 60 | HARDENED, HARDENED, 0];
/// Children that only the private key has (BIP-32).
const HARDENED: u32 = 1 << 31;

/// An account whose key is here.
#[derive(Clone, Debug)]
pub struct Signer {
    /// Where it is.
    pub address: Address,
    key: SecretKey,
}

impl Signer {
    fn new(key: SecretKey) -> Signer {
        Signer { address: address(&key.public_key(SECP256K1)), key }
    }

    /// A signer with this private key; none for zero and for what is beyond the curve's order.
    pub fn from_key(key: B256) -> Option<Signer> {
        SecretKey::from_byte_array(key.0).ok().map(Signer::new)
    }

    /// The private key.
    pub fn private_key(&self) -> B256 {
        self.key.secret_bytes().into()
    }

    /// Signs a hash.
    pub fn sign(&self, hash: B256) -> Signature {
        let signature = SECP256K1.sign_ecdsa_recoverable(Message::from_digest(hash.0), &self.key);
        let (id, bytes) = signature.serialize_compact();
        Signature::from_bytes_and_parity(&bytes, i32::from(id) != 0)
    }
}

/// The first `count` accounts of [`MNEMONIC`].
pub fn development(count: u32) -> Vec<Signer> {
    let mut seed = [0; 64];
    // The password's salt is the word "mnemonic" and nothing more.
    pbkdf2::pbkdf2_hmac::<Sha512>(MNEMONIC.as_bytes(), b"mnemonic", ROUNDS, &mut seed);
    let Some(master) = half(b"Bitcoin seed", &[&seed]) else { return Vec::new() };
    let parent = PATH.iter().try_fold(master, |parent, index| child(&parent, *index));
    let Some(parent) = parent else { return Vec::new() };
    (0..count).filter_map(|index| child(&parent, index)).map(|(key, _)| Signer::new(key)).collect()
}

/// A key and its chain code (BIP-32).
type Extended = (SecretKey, [u8; 32]);

/// HMAC-SHA512, whose halves are a key and a chain code.
fn half(key: &[u8], parts: &[&[u8]]) -> Option<Extended> {
    let mut mac = Hmac::<Sha512>::new_from_slice(key).ok()?;
    parts.iter().for_each(|part| mac.update(part));
    let sum = mac.finalize().into_bytes();
    let (left, right) = sum.split_at(32);
    Some((SecretKey::from_byte_array(left.try_into().ok()?).ok()?, right.try_into().ok()?))
}

fn child((key, code): &Extended, index: u32) -> Option<Extended> {
    let public = key.public_key(SECP256K1).serialize();
    let number = index.to_be_bytes();
    let (tweak, code) = if index & HARDENED == 0 {
        half(code, &[&public, &number])?
    } else {
        half(code, &[&[0], &key.secret_bytes(), &number])?
    };
    Some((key.add_tweak(&Scalar::from(tweak)).ok()?, code))
}

fn address(key: &PublicKey) -> Address {
    let bytes = key.serialize_uncompressed();
    Address::from_slice(&keccak256(&bytes[1..])[12..])
}

/// Half the order of the curve: a signature's `s` above it is refused (EIP-2).
const HALF_ORDER: U256 = U256::from_limbs([
    0xDFE9_2F46_681B_20A0,
    0x5D57_6E73_57A4_501D,
    0xFFFF_FFFF_FFFF_FFFF,
    0x7FFF_FFFF_FFFF_FFFF,
]);

/// Who signed `hash`; nobody for a signature that is none.
pub fn recover(signature: &Signature, hash: B256) -> Option<Address> {
    if signature.s() > HALF_ORDER {
        return None;
    }
    let id = RecoveryId::try_from(i32::from(signature.v())).ok()?;
    let bytes = signature.as_rsy();
    let signature = RecoverableSignature::from_compact(bytes.get(..64)?, id).ok()?;
    let key = SECP256K1.recover_ecdsa(Message::from_digest(hash.0), &signature).ok()?;
    Some(address(&key))
}

#[cfg(test)]
mod tests {
    use alloy_primitives::{address, b256};

    use super::*;

    #[test]
    fn the_accounts_are_those_that_every_tool_knows() {
        let accounts = development(10);
        assert_eq!(accounts[0].address, address!("f39Fd6e51aad88F6F4ce6aB8827279cffFb92266"));
        assert_eq!(
            accounts[0].private_key(),
            b256!("ac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80")
        );
        assert_eq!(accounts[9].address, address!("a0Ee7A142d267C1f36714E4a8F75612F20a79720"));
    }

    #[test]
    fn a_signature_says_who_signed_and_its_mirror_image_nobody() {
        let signer = &development(1)[0];
        let hash = keccak256("what was said");
        let signature = signer.sign(hash);
        assert_eq!(recover(&signature, hash), Some(signer.address));
        assert_ne!(recover(&signature, keccak256("something else")), Some(signer.address));
        let order = HALF_ORDER * U256::from(2) + U256::from(1);
        let mirrored = Signature::new(signature.r(), order - signature.s(), !signature.v());
        assert_eq!(recover(&mirrored, hash), None);
        assert_eq!(recover(&Signature::new(U256::ZERO, U256::from(1), false), hash), None);
    }
}
