//! Noise by the crate `snow`: the three messages, and the keys that come of them.

use std::sync::LazyLock;

use snow::params::{CipherChoice, DHChoice, HashChoice, NoiseParams};
use snow::resolvers::{CryptoResolver, DefaultResolver};
use snow::types::{Cipher as NoiseCipher, Dh, Hash, Random};
use snow::{Builder, HandshakeState};

use super::Own;
use crate::transport::cipher::Cipher;
use crate::transport::keys::{Keys, derive};
use crate::wire::packet::{HANDSHAKE_MAX, Hello, VERSION};

static PATTERN: LazyLock<NoiseParams> = LazyLock::new(|| {
    "Noise_XXpsk3_25519_ChaChaPoly_BLAKE2s".parse().expect("a pattern and primitives that snow is built with")
});

/// A message did not open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Unopened;

/// One handshake on one side.
pub(super) struct Session(HandshakeState);

/// What both sides must have seen alike: everything that the Hello says in clear, but the cookie, which proves an
/// address and nothing else.
fn prologue(hello: &Hello<'_>) -> Vec<u8> {
    let mut bytes = b"vbus 1 initiator responder".to_vec();
    bytes.push(VERSION);
    bytes.extend(hello.from.0);
    bytes.extend([hello.mode as u8, hello.ciphers]);
    for text in [hello.domain, hello.name] {
        bytes.push(text.len() as u8);
        bytes.extend(text.as_bytes());
    }
    bytes
}

impl Session {
    /// For the side that says this Hello, whose Noise message is not looked at, with this ephemeral key. The same
    /// arguments give the same session.
    pub(super) fn initiator(own: &Own, hello: &Hello<'_>, ephemeral: [u8; 32]) -> Self {
        Self::new(own, hello, ephemeral, true)
    }

    /// For the side that got this Hello.
    pub(super) fn responder(own: &Own, hello: &Hello<'_>, ephemeral: [u8; 32]) -> Self {
        Self::new(own, hello, ephemeral, false)
    }

    fn new(own: &Own, hello: &Hello<'_>, ephemeral: [u8; 32], initiator: bool) -> Self {
        let prologue = prologue(hello);
        let build = || {
            let builder = Builder::with_resolver(PATTERN.clone(), Box::new(Primitives { ephemeral }))
                .prologue(&prologue)?
                .local_private_key(own.identity.private())?
                .psk(3, own.admission.psk())?;
            if initiator { builder.build_initiator() } else { builder.build_responder() }
        };
        Self(build().expect("all that the pattern needs was given, once, in the right length"))
    }

    /// The next message with this payload, which fits.
    pub(super) fn write(&mut self, payload: &[u8]) -> Vec<u8> {
        let mut message = vec![0; HANDSHAKE_MAX];
        let len =
            self.0.write_message(payload, &mut message).expect("it is our turn, and payloads are bounded");
        message.truncate(len);
        message
    }

    /// The payload of the other's next message. After one that does not open the session is of no use: snow 0.10
    /// takes back its hash, but not the key of its cipher.
    pub(super) fn read(&mut self, message: &[u8]) -> Result<Vec<u8>, Unopened> {
        let mut payload = vec![0; message.len()];
        let len = self.0.read_message(message, &mut payload).map_err(|_| Unopened)?;
        payload.truncate(len);
        Ok(payload)
    }

    /// The other's public key, once it came.
    pub(super) fn other(&self) -> Option<[u8; 32]> {
        self.0.get_remote_static().and_then(|key| key.try_into().ok())
    }

    /// After the last message: the keys of packets. Noise's two keys, extracted with the hash of all that was said,
    /// give a secret for each direction.
    pub(super) fn keys(mut self, cipher: Cipher) -> Keys {
        debug_assert!(self.0.is_handshake_finished());
        let (one, two) = self.0.dangerously_get_raw_split();
        let both = [one, two].concat();
        let secret = |label: &[u8]| derive(self.0.get_handshake_hash(), &both, label);
        let (initiator, responder) = (secret(b"vbus initiator"), secret(b"vbus responder"));
        if self.0.is_initiator() {
            Keys::new(cipher, true, &initiator, &responder)
        } else {
            Keys::new(cipher, false, &responder, &initiator)
        }
    }
}

/// snow's own primitives, with an ephemeral key that was drawn before: so the same session can be begun again for
/// every answer, and a simulation repeats itself.
struct Primitives {
    ephemeral: [u8; 32],
}

impl CryptoResolver for Primitives {
    fn resolve_rng(&self) -> Option<Box<dyn Random>> {
        Some(Box::new(Drawn(Some(self.ephemeral))))
    }

    fn resolve_dh(&self, choice: &DHChoice) -> Option<Box<dyn Dh>> {
        DefaultResolver.resolve_dh(choice)
    }

    fn resolve_hash(&self, choice: &HashChoice) -> Option<Box<dyn Hash>> {
        DefaultResolver.resolve_hash(choice)
    }

    fn resolve_cipher(&self, choice: &CipherChoice) -> Option<Box<dyn NoiseCipher>> {
        DefaultResolver.resolve_cipher(choice)
    }
}

/// Gives one key, once: a side draws one ephemeral key.
struct Drawn(Option<[u8; 32]>);

impl Random for Drawn {
    fn try_fill_bytes(&mut self, dest: &mut [u8]) -> Result<(), snow::Error> {
        let drawn = self.0.take().filter(|drawn| drawn.len() == dest.len()).ok_or(snow::Error::Rng)?;
        dest.copy_from_slice(&drawn);
        Ok(())
    }
}
