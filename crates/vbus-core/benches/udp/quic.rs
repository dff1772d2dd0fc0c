//! The same by `quinn`: one stream of one connection, a runtime of one thread on each side.

use std::net::SocketAddr;
use std::sync::Arc;

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{ClientConfig, Endpoint, EndpointConfig, ServerConfig, TokioRuntime, TransportConfig, VarInt};
use ring::signature::Ed25519KeyPair;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::ring::{default_provider, sign::any_eddsa_type};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::server::AlwaysResolvesServerRawPublicKeys;
use rustls::sign::CertifiedKey;
use rustls::{DigitallySignedStruct, SignatureScheme};

/// As much as the bare loop has under way, and more than loopback needs.
const WINDOW: u32 = 8 << 20;

pub(crate) fn carry(datagram: usize, bytes: u64) {
    let socket = std::net::UdpSocket::bind("[::1]:0")
        .or_else(|_| std::net::UdpSocket::bind("127.0.0.1:0"))
        .expect("a socket");
    let to = socket.local_addr().expect("it is bound");
    std::thread::scope(|scope| {
        scope.spawn(move || runtime().block_on(receive(socket, datagram, bytes)));
        runtime().block_on(send(to, datagram, bytes));
    });
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}

fn transport(datagram: usize) -> Arc<TransportConfig> {
    let mut transport = TransportConfig::default();
    transport
        .initial_mtu(datagram as u16)
        .min_mtu(datagram as u16)
        .mtu_discovery_config(None)
        .stream_receive_window(VarInt::from_u32(WINDOW))
        .receive_window(VarInt::from_u32(WINDOW))
        .send_window(u64::from(WINDOW));
    Arc::new(transport)
}

fn endpoint_config() -> EndpointConfig {
    let mut config = EndpointConfig::default();
    config.max_udp_payload_size(65_527).expect("within the format's limits");
    config
}

async fn receive(socket: std::net::UdpSocket, datagram: usize, bytes: u64) {
    let pkcs8 = Ed25519KeyPair::generate_pkcs8(&ring::rand::SystemRandom::new()).expect("dice");
    let key = any_eddsa_type(&PrivatePkcs8KeyDer::from(pkcs8.as_ref().to_vec())).expect("a key");
    let public = key.public_key().expect("it has one");
    let certified = CertifiedKey::new(vec![CertificateDer::from(public.to_vec())], key);
    let tls = rustls::ServerConfig::builder_with_provider(Arc::new(default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("the provider speaks it")
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(AlwaysResolvesServerRawPublicKeys::new(Arc::new(certified))));
    let crypto = QuicServerConfig::try_from(tls).expect("it has what QUIC begins with");
    let mut config = ServerConfig::with_crypto(Arc::new(crypto));
    config.transport_config(transport(datagram));
    let endpoint = Endpoint::new(endpoint_config(), Some(config), socket, Arc::new(TokioRuntime));
    let endpoint = endpoint.expect("an endpoint");
    let connection = endpoint.accept().await.expect("one comes").await.expect("and is let in");
    let mut stream = connection.accept_uni().await.expect("a stream");
    let mut arrived = 0;
    while let Some(chunk) = stream.read_chunk(usize::MAX, true).await.expect("the stream goes on") {
        arrived += chunk.bytes.len() as u64;
    }
    assert_eq!(arrived, bytes);
    connection.close(VarInt::from_u32(0), b"");
    endpoint.wait_idle().await;
}

async fn send(to: SocketAddr, datagram: usize, bytes: u64) {
    let here = SocketAddr::new(to.ip(), 0);
    let socket = std::net::UdpSocket::bind(here).expect("a socket");
    let endpoint =
        Endpoint::new(endpoint_config(), None, socket, Arc::new(TokioRuntime)).expect("an endpoint");
    let tls = rustls::ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("the provider speaks it")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody))
        .with_no_client_auth();
    let crypto = QuicClientConfig::try_from(tls).expect("it has what QUIC begins with");
    let mut config = ClientConfig::new(Arc::new(crypto));
    config.transport_config(transport(datagram));
    let connection =
        endpoint.connect_with(config, to, "bench").expect("an attempt").await.expect("a connection");
    let mut stream = connection.open_uni().await.expect("a stream");
    let chunk = bytes::Bytes::from(vec![1; 1 << 20]);
    for _ in 0..bytes / chunk.len() as u64 {
        stream.write_chunk(chunk.clone()).await.expect("the stream goes on");
    }
    stream.finish().expect("it is open");
    connection.closed().await;
}

/// Whoever answers is believed: it is our own other thread.
#[derive(Debug)]
struct Anybody;

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}
