//! TLS: how much of the server's identity each `sslmode` proves, and the name by which SCRAM binds itself to
//! the certificate.

use std::path::Path;
use std::sync::Arc;

use pkcs8::der::pem::PemLabel;
use pkcs8::{EncryptedPrivateKeyInfoRef, SecretDocument};
use rustls::client::WantsClientCert;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{WebPkiSupportedAlgorithms, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{
    CertificateError, ClientConfig, ConfigBuilder, DigitallySignedStruct, RootCertStore, SignatureScheme,
};
use sha2::{Digest, Sha256, Sha384, Sha512};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use x509_cert::Certificate;
use x509_cert::der::Decode;
use x509_cert::der::oid::db::rfc5912::{
    ECDSA_WITH_SHA_256, ECDSA_WITH_SHA_384, ECDSA_WITH_SHA_512, SHA_1_WITH_RSA_ENCRYPTION,
    SHA_256_WITH_RSA_ENCRYPTION, SHA_384_WITH_RSA_ENCRYPTION, SHA_512_WITH_RSA_ENCRYPTION,
};

use crate::error::{Code, Error, Result};
use crate::source::{PostgresConfig, SYSTEM, SslMode, SslNegotiation};

/// What a server is told that TLS begins with at once.
const ALPN: &[u8] = b"postgresql";

/// Goes over to TLS. [`Kind::Setup`](crate::error::Kind::Setup) when the server does not prove what `sslmode` asks for.
pub(crate) async fn handshake(tcp: TcpStream, config: &PostgresConfig) -> Result<TlsStream<TcpStream>> {
    let name = ServerName::try_from(config.host.clone()).map_err(|error| {
        Error::new(
            Code::Configuration,
            format!("`postgres.host` is neither name nor address: {:?}", config.host),
        )
        .hint("give the server's DNS name or IP address")
        .because(error)
    })?;
    let connector = TlsConnector::from(Arc::new(client_config(config)?));
    connector.connect(name, tcp).await.map_err(|error| refused(error, config))
}

/// The hash by which both sides name the server's certificate (RFC 5929, `tls-server-end-point`); `None` where
/// the certificate's signature algorithm has no hash of its own, as with Ed25519, or hides it (RSA-PSS).
pub(crate) fn end_point(stream: &TlsStream<TcpStream>) -> Option<Vec<u8>> {
    let certificate = stream.get_ref().1.peer_certificates()?.first()?;
    hash_of(certificate)
}

fn hash_of(certificate: &CertificateDer<'_>) -> Option<Vec<u8>> {
    match Certificate::from_der(certificate).ok()?.signature_algorithm().oid {
        // what is weaker than SHA-256 is replaced by it
        SHA_1_WITH_RSA_ENCRYPTION | SHA_256_WITH_RSA_ENCRYPTION | ECDSA_WITH_SHA_256 => {
            Some(Sha256::digest(certificate).to_vec())
        }
        SHA_384_WITH_RSA_ENCRYPTION | ECDSA_WITH_SHA_384 => Some(Sha384::digest(certificate).to_vec()),
        SHA_512_WITH_RSA_ENCRYPTION | ECDSA_WITH_SHA_512 => Some(Sha512::digest(certificate).to_vec()),
        _ => None,
    }
}

/// What the server's certificate must prove.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Proof {
    /// Nothing: an eavesdropper is kept out, an impostor is not.
    Nothing,
    /// That a trusted authority signed it.
    Authority,
    /// That, and that it is for this host.
    AuthorityAndHost,
}

impl Proof {
    /// As in libpq, `require` with a root certificate at hand is `verify-ca`.
    fn asked_by(config: &PostgresConfig) -> Proof {
        match config.sslmode {
            SslMode::VerifyFull => Proof::AuthorityAndHost,
            SslMode::VerifyCa => Proof::Authority,
            SslMode::Require if config.sslrootcert.is_some() => Proof::Authority,
            SslMode::Require | SslMode::Prefer | SslMode::Disable => Proof::Nothing,
        }
    }
}

fn client_config(config: &PostgresConfig) -> Result<ClientConfig> {
    let algorithms = ring::default_provider().signature_verification_algorithms;
    let proof = Proof::asked_by(config);
    let file = config.sslrootcert.as_deref().filter(|file| *file != SYSTEM);
    let trusted = if proof == Proof::Nothing { Vec::new() } else { trusted(file)? };
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(trusted.iter().cloned());
    let builder = verified_by(Verifier { proof, roots, trusted, algorithms })?;
    let mut tls = match config.sslcert.is_empty() {
        true => builder.with_no_client_auth(),
        false => {
            let (chain, key) = our_certificate(config)?;
            let with_ours = builder.with_client_auth_cert(chain, key);
            with_ours.map_err(|error| ours_unfit("postgres.sslcert", &config.sslcert).because(error))?
        }
    };
    if config.sslnegotiation == SslNegotiation::Direct {
        tls.alpn_protocols = vec![ALPN.to_vec()];
    }
    Ok(tls)
}

/// What a server that asks for a certificate is shown.
fn our_certificate(
    config: &PostgresConfig,
) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)> {
    let PostgresConfig { sslcert, .. } = config;
    let chain: Vec<_> = CertificateDer::pem_file_iter(Path::new(sslcert))
        .and_then(Iterator::collect)
        .map_err(|error| ours_unfit("postgres.sslcert", sslcert).because(error))?;
    if chain.is_empty() {
        return Err(ours_unfit("postgres.sslcert", sslcert));
    }
    Ok((chain, our_key(config)?))
}

/// As in libpq, a password that the file does not need is no fault.
fn our_key(config: &PostgresConfig) -> Result<PrivateKeyDer<'static>> {
    let PostgresConfig { sslkey, sslpassword, .. } = config;
    let unfit = |hint: &str| ours_unfit("postgres.sslkey", sslkey).hint(hint);
    let unreadable = "it must be a PEM file that this user may read";
    let text = std::fs::read(sslkey).map_err(|error| unfit(unreadable).because(error))?;
    let label = format!("-----BEGIN {}-----", EncryptedPrivateKeyInfoRef::PEM_LABEL);
    let locked = String::from_utf8_lossy(&text).find(&label).and_then(|at| text.get(at..));
    let Some(locked) = locked else {
        return PrivateKeyDer::from_pem_slice(&text).map_err(|error| {
            unfit("it must be a PEM file of PKCS #8; of a key of another kind with a password: openssl pkcs8 -topk8 -in old.key -out new.key")
                .because(error)
        });
    };
    if sslpassword.expose().is_empty() {
        return Err(unfit(
            "it has a password: export POSTGRES_SSLPASSWORD, or POSTGRES_SSLPASSWORD_FILE with the file that has it",
        ));
    }
    let wrong = || {
        unfit(
            "POSTGRES_SSLPASSWORD must be its password, and its cipher AES: openssl pkcs8 -topk8 -v2 aes-256-cbc -in old.key -out new.key",
        )
    };
    let (_, sealed) =
        SecretDocument::from_pem(&String::from_utf8_lossy(locked)).map_err(|error| wrong().because(error))?;
    let sealed =
        EncryptedPrivateKeyInfoRef::try_from(sealed.as_bytes()).map_err(|error| wrong().because(error))?;
    let key = sealed.decrypt(sslpassword.expose()).map_err(|error| wrong().because(error))?;
    Ok(PrivatePkcs8KeyDer::from(key.as_bytes().to_vec()).into())
}

fn ours_unfit(setting: &str, file: &str) -> Error {
    Error::new(Code::ConfigurationUnreadable, format!("`{setting}`, {file}, cannot be used"))
        .hint("give the PEM file of a certificate and, in postgres.sslkey, that of its key")
}

/// Whether TLS as it is asked for proves who the server is.
pub(crate) fn proves(config: &PostgresConfig) -> bool {
    Proof::asked_by(config) != Proof::Nothing
}

fn verified_by(verifier: Verifier) -> Result<ConfigBuilder<ClientConfig, WantsClientCert>> {
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| Error::new(Code::Protocol, "no TLS version is left").because(error))?;
    Ok(builder.dangerous().with_custom_certificate_verifier(Arc::new(verifier)))
}

/// TLS with whoever answers, for those who only want to see what a server speaks: nothing secret may be sent, and nothing that
/// comes be believed.
pub(crate) fn with_anybody() -> Result<ConfigBuilder<ClientConfig, WantsClientCert>> {
    let algorithms = ring::default_provider().signature_verification_algorithms;
    let (proof, roots) = (Proof::Nothing, RootCertStore::empty());
    verified_by(Verifier { proof, roots, trusted: Vec::new(), algorithms })
}

/// The certificates to trust: the file's, or the system's.
fn trusted(sslrootcert: Option<&str>) -> Result<Vec<CertificateDer<'static>>> {
    let Some(file) = sslrootcert else {
        let system = rustls_native_certs::load_native_certs();
        return match (system.certs.is_empty(), system.errors.into_iter().next()) {
            (true, Some(error)) => Err(no_roots("the system's certificate authorities").because(error)),
            (true, None) => Err(no_roots("the system's certificate authorities")),
            (false, _) => Ok(system.certs),
        };
    };
    let of_file = || no_roots(&format!("`postgres.sslrootcert`, {file},"));
    let certificates: Vec<_> = CertificateDer::pem_file_iter(Path::new(file))
        .and_then(Iterator::collect)
        .map_err(|error| of_file().because(error))?;
    if certificates.is_empty() { Err(of_file()) } else { Ok(certificates) }
}

fn no_roots(place: &str) -> Error {
    Error::new(Code::ConfigurationUnreadable, format!("{place} cannot be read or holds no certificate")).hint(
        "point `postgres.sslrootcert` to a PEM file of the authority that signed the server's certificate",
    )
}

/// Proves of the certificate what is asked, and always that the server has its key.
#[derive(Debug)]
struct Verifier {
    proof: Proof,
    roots: RootCertStore,
    trusted: Vec<CertificateDer<'static>>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if self.proof == Proof::Nothing {
            return Ok(ServerCertVerified::assertion());
        }
        let certificate = ParsedCertificate::try_from(end_entity)?;
        if self.trusted.contains(end_entity) {
            in_force(end_entity, now)?;
        } else {
            let algorithms = self.algorithms.all;
            verify_server_cert_signed_by_trust_anchor(
                &certificate,
                &self.roots,
                intermediates,
                now,
                algorithms,
            )?;
        }
        if self.proof == Proof::AuthorityAndHost {
            verify_server_name(&certificate, server_name)?;
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// A server's self-signed certificate that the operator trusts as it is needs no chain (webpki would refuse it
/// for being an authority too, as `openssl req -x509` makes them); its dates still count.
fn in_force(certificate: &CertificateDer<'_>, now: UnixTime) -> Result<(), CertificateError> {
    let certificate = Certificate::from_der(certificate).map_err(|_| CertificateError::BadEncoding)?;
    let validity = certificate.tbs_certificate().validity();
    if now.as_secs() < validity.not_before.to_unix_duration().as_secs() {
        return Err(CertificateError::NotValidYet);
    }
    if now.as_secs() > validity.not_after.to_unix_duration().as_secs() {
        return Err(CertificateError::Expired);
    }
    Ok(())
}

const AT_ONCE: &str = "see PostgreSQL's log; before version 17 it knows no TLS that begins without asking: unset \
    `postgres.sslnegotiation`";

/// Why the handshake failed, with what mends it.
fn refused(error: std::io::Error, config: &PostgresConfig) -> Error {
    let Some(reason) = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) else {
        return Error::new(
            Code::PostgresUnreachable,
            "PostgreSQL closed the connection in the TLS handshake",
        )
        .hint(match config.sslnegotiation {
            SslNegotiation::Postgres => "see PostgreSQL's log",
            SslNegotiation::Direct => AT_ONCE,
        })
        .because(error);
    };
    let hint = match reason {
        rustls::Error::InvalidCertificate(reason) => certificate_hint(reason, &config.host),
        _ if config.sslnegotiation == SslNegotiation::Direct => AT_ONCE.to_owned(),
        _ => "see PostgreSQL's log; walcast speaks TLS 1.2 and 1.3".to_owned(),
    };
    Error::new(Code::PostgresTls, "TLS with PostgreSQL failed").hint(hint).because(error)
}

fn certificate_hint(reason: &CertificateError, host: &str) -> String {
    let hint = match reason {
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            return format!(
                "the certificate's subjectAltName must have {host}: set `postgres.host` to a name that it has, \
                 or, with the file of your own authority in `postgres.sslrootcert`, `postgres.sslmode` to \"verify-ca\""
            );
        }
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            "renew the server's certificate, or set this machine's clock right"
        }
        // webpki calls a self-signed one an authority that is no server
        CertificateError::UnknownIssuer | CertificateError::BadSignature | CertificateError::Other(_) => {
            "set `postgres.sslrootcert` to the PEM file of the authority that signed the server's certificate"
        }
        _ => "give the server another certificate (ssl_cert_file)",
    };
    hint.to_owned()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_certificate_trusted_as_it_is_counts_between_its_dates() {
        // from 2026-11-23 04:04:57 to 2027-11-23 04:04:57, UTC
        let pem = include_bytes!("../../tests/data/self_signed.pem");
        let certificate = CertificateDer::from_pem_slice(pem).ok();
        let at = |seconds| {
            certificate
                .as_ref()
                .map(|one| in_force(one, UnixTime::since_unix_epoch(Duration::from_secs(seconds))))
        };
        let (begin, end) = (1_795_406_697, 1_826_942_697);
        assert_eq!(at(begin - 1), Some(Err(CertificateError::NotValidYet)));
        assert_eq!(at(begin), Some(Ok(())));
        assert_eq!(at(end), Some(Ok(())));
        assert_eq!(at(end + 1), Some(Err(CertificateError::Expired)));
        assert_eq!(
            in_force(&CertificateDer::from(vec![0; 9]), UnixTime::now()),
            Err(CertificateError::BadEncoding)
        );
    }
}
