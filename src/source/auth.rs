//! Proving who we are, and by SCRAM who the server is.

use bytes::Bytes;
use postgres_protocol::authentication::md5_hash;
use postgres_protocol::authentication::sasl::{
    ChannelBinding, SCRAM_SHA_256, SCRAM_SHA_256_PLUS, ScramSha256,
};
use postgres_protocol::message::frontend;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::error::{Code, Error, Result};
use crate::source::PostgresConfig;
use crate::source::frame::{malformed, take_bytes, take_i32, take_text};
use crate::source::server_error::{Asked, ServerError};
use crate::source::wire::{Wire, nul, unexpected};

/// What lies under the packets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Security {
    /// Nothing: everybody on the way can read and write.
    Plain,
    /// TLS, with the hash that names the server's certificate (RFC 5929 `tls-server-end-point`), where its
    /// signature algorithm has one.
    Tls {
        /// The hash.
        end_point: Option<Vec<u8>>,
    },
}

/// What the server asks for in an Authentication packet.
const OK: i32 = 0;
const CLEARTEXT: i32 = 3;
const MD5: i32 = 5;
const SASL: i32 = 10;
const SASL_CONTINUE: i32 = 11;
const SASL_FINAL: i32 = 12;

/// Answers the server until it lets us in. True when the login was bound to the server's certificate.
pub(crate) async fn authenticate<S>(
    wire: &mut Wire<S>,
    config: &PostgresConfig,
    security: &Security,
) -> Result<bool>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut body = request(wire, Asked::Login).await?;
    if LoginRules::new(config, security).permit(&mut body.clone())? {
        return Ok(false);
    }
    let mut bound = false;
    let password = config.password.expose().as_bytes();
    match take_i32(&mut body)? {
        SASL => bound = scram(wire, password, security, body).await?,
        MD5 => {
            let salt = take_bytes(&mut body, 4)?.as_ref().try_into().unwrap_or_default();
            let answer = md5_hash(config.user.as_bytes(), password, salt);
            send_password(wire, answer.as_bytes()).await?;
        }
        CLEARTEXT => send_password(wire, password).await?,
        step => return Err(malformed(format!("authentication step {step} first"))),
    }
    expect(wire, OK, Asked::Login).await.map(|_| bound)
}

/// To whom the password may be shown, and how.
pub(crate) struct LoginRules {
    has_password: bool,
    allow_md5: bool,
    encrypted: bool,
}

impl LoginRules {
    pub fn new(config: &PostgresConfig, security: &Security) -> Self {
        LoginRules {
            has_password: !config.password.expose().is_empty(),
            allow_md5: config.allow_md5,
            encrypted: *security != Security::Plain,
        }
    }

    /// Refuses what the server may not ask for in this Authentication packet; true when it lets us in.
    pub fn permit(&self, body: &mut Bytes) -> Result<bool> {
        match take_i32(body)? {
            OK => return Ok(true),
            SASL | SASL_CONTINUE | SASL_FINAL => {}
            MD5 if self.allow_md5 => {}
            CLEARTEXT if self.allow_md5 && self.encrypted => {}
            MD5 => return Err(weak("an MD5 password")),
            CLEARTEXT => return Err(weak("the password in clear text")),
            method => return Err(unsupported(method)),
        }
        if self.has_password { Ok(false) } else { Err(no_password()) }
    }
}

/// What the server answers after this Authentication packet, whose answer it waits for.
pub(crate) fn asked_next(body: &mut Bytes) -> Result<Asked> {
    Ok(match take_i32(body)? {
        SASL | SASL_CONTINUE => Asked::Scram,
        _ => Asked::Login,
    })
}

/// The next Authentication packet's body, in answer to what we asked.
async fn request<S: AsyncRead + AsyncWrite + Unpin>(wire: &mut Wire<S>, asked: Asked) -> Result<Bytes> {
    loop {
        let packet = wire.next().await?;
        match packet.tag {
            b'R' => return Ok(packet.body),
            b'E' => return Err(ServerError::parse(packet.body)?.into_error(asked)),
            b'N' => {}
            _ => return Err(unexpected(&packet, "before it let us in")),
        }
    }
}

async fn expect<S>(wire: &mut Wire<S>, wanted: i32, asked: Asked) -> Result<Bytes>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut body = request(wire, asked).await?;
    match take_i32(&mut body)? {
        step if step == wanted => Ok(body),
        step => Err(malformed(format!("authentication step {step} where {wanted} was due"))),
    }
}

async fn send_password<S: AsyncRead + AsyncWrite + Unpin>(wire: &mut Wire<S>, password: &[u8]) -> Result<()> {
    frontend::password_message(password, wire.output()).map_err(nul)?;
    wire.flush().await
}

async fn scram<S>(wire: &mut Wire<S>, password: &[u8], security: &Security, mut body: Bytes) -> Result<bool>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (mechanism, binding) = mechanism(&mechanisms(&mut body)?, security)?;
    let mut scram = ScramSha256::new(password, binding);
    frontend::sasl_initial_response(mechanism, scram.message(), wire.output()).map_err(nul)?;
    wire.flush().await?;

    let challenge = expect(wire, SASL_CONTINUE, Asked::Scram).await?;
    scram.update(&challenge).map_err(scram_failed)?;
    frontend::sasl_response(scram.message(), wire.output()).map_err(nul)?;
    wire.flush().await?;

    let proof = expect(wire, SASL_FINAL, Asked::Scram).await?;
    scram.finish(&proof).map_err(scram_failed)?;
    Ok(mechanism == SCRAM_SHA_256_PLUS)
}

fn mechanisms(body: &mut Bytes) -> Result<Vec<String>> {
    let mut names = Vec::new();
    loop {
        match take_text(body)? {
            end if end.is_empty() => return Ok(names),
            name => names.push(name),
        }
    }
}

/// The channel is bound wherever both sides can. Where the server says that it cannot, we tell it so under
/// our signature: somebody in between who took -PLUS off the list is found out.
fn mechanism(offered: &[String], security: &Security) -> Result<(&'static str, ChannelBinding)> {
    let offers = |name: &str| offered.iter().any(|mechanism| mechanism == name);
    match security {
        Security::Tls { end_point: Some(hash) } if offers(SCRAM_SHA_256_PLUS) => {
            Ok((SCRAM_SHA_256_PLUS, ChannelBinding::tls_server_end_point(hash.clone())))
        }
        Security::Tls { end_point: Some(_) } if offers(SCRAM_SHA_256) => {
            Ok((SCRAM_SHA_256, ChannelBinding::unrequested()))
        }
        _ if offers(SCRAM_SHA_256) => Ok((SCRAM_SHA_256, ChannelBinding::unsupported())),
        _ => {
            let offered = offered.join(", ");
            Err(Error::new(Code::PostgresLogin, format!("PostgreSQL offers only {offered} to log in by"))
                .hint(USE_SCRAM))
        }
    }
}

const USE_SCRAM: &str = "SET password_encryption = 'scram-sha-256'; set the role's password anew, and write \
    scram-sha-256 in pg_hba.conf";

fn weak(what: &str) -> Error {
    Error::new(Code::PostgresLogin, format!("PostgreSQL asks for {what}, which walcast does not show"))
        .hint(format!("{USE_SCRAM}; or set `postgres.allow_md5` = true (clear text goes over TLS only)"))
}

fn unsupported(method: i32) -> Error {
    Error::new(Code::PostgresLogin, format!("PostgreSQL asks for the authentication method {method}"))
        .hint(USE_SCRAM)
}

fn no_password() -> Error {
    Error::new(Code::PostgresLogin, "PostgreSQL asks for a password, and none is set")
        .hint("set `postgres.password`, POSTGRES_PASSWORD or POSTGRES_PASSWORD_FILE")
}

fn scram_failed(error: std::io::Error) -> Error {
    Error::new(Code::PostgresLogin, "the server did not prove that it knows the password")
        .hint("see `postgres.host`: somebody may stand between walcast and PostgreSQL")
        .because(error)
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;

    use super::*;
    use crate::source::script::{authentication, hear, say};

    const TLS: Security = Security::Tls { end_point: None };

    fn config(allow_md5: bool) -> PostgresConfig {
        let (user, password) = ("walcast".to_owned(), "secret".to_owned().into());
        PostgresConfig { user, password, allow_md5, ..Default::default() }
    }

    /// A server that says all this whatever it hears: how the login ends, and the packets that it heard.
    async fn log_in(config: &PostgresConfig, security: &Security, said: &[u8]) -> (Option<Code>, Vec<Bytes>) {
        let (client, mut server) = tokio::io::duplex(4096);
        say(&mut server, said).await;
        assert!(server.shutdown().await.is_ok());
        let ended = authenticate(&mut Wire::new(client), config, security).await;
        let mut heard = Vec::new();
        while let Some((tag, body)) = hear(&mut server).await {
            assert_eq!(tag, b'p');
            heard.push(body);
        }
        (ended.err().map(|error| error.code()), heard)
    }

    #[tokio::test]
    async fn whom_the_server_trusts_is_in() {
        assert_eq!(log_in(&config(false), &Security::Plain, &authentication(OK, b"")).await, (None, vec![]));
    }

    #[tokio::test]
    async fn a_weak_password_is_not_shown_unless_allowed() {
        let md5 = authentication(MD5, b"salt");
        let clear = authentication(CLEARTEXT, b"");
        for (allowed, security, said) in
            [(false, &TLS, &md5), (false, &TLS, &clear), (true, &Security::Plain, &clear)]
        {
            assert_eq!(log_in(&config(allowed), security, said).await, (Some(Code::PostgresLogin), vec![]));
        }
        let (ended, heard) = log_in(&config(true), &TLS, &[clear, authentication(OK, b"")].concat()).await;
        assert_eq!((ended, heard), (None, vec![Bytes::from_static(b"secret\0")]));
        let (ended, heard) =
            log_in(&config(true), &Security::Plain, &[md5, authentication(OK, b"")].concat()).await;
        // md5(md5("secretwalcast") + "salt")
        let digest = Bytes::from_static(b"md563222ee22bc4abd4578d462cf8b45c6c\0");
        assert_eq!((ended, heard), (None, vec![digest]));
    }

    #[tokio::test]
    async fn a_server_that_skips_steps_learns_nothing() {
        for step in [SASL_CONTINUE, SASL_FINAL, 7, -1] {
            let (ended, heard) = log_in(&config(true), &TLS, &authentication(step, b"r=x,s=eA==,i=1")).await;
            assert!(ended.is_some() && heard.is_empty(), "step {step}: {ended:?} {heard:?}");
        }
    }

    #[tokio::test]
    async fn a_server_that_does_not_prove_itself_is_refused() {
        let said = [authentication(SASL, b"SCRAM-SHA-256\0\0"), authentication(OK, b"")].concat();
        let (ended, heard) = log_in(&config(false), &TLS, &said).await;
        assert_eq!((ended, heard.len()), (Some(Code::Protocol), 1));
    }

    #[tokio::test]
    async fn a_missing_password_is_said_at_once() {
        let mut config = config(true);
        config.password = String::new().into();
        for said in [authentication(SASL, b"SCRAM-SHA-256\0\0"), authentication(MD5, b"salt")] {
            assert_eq!(log_in(&config, &TLS, &said).await, (Some(Code::PostgresLogin), vec![]));
        }
    }

    #[test]
    fn the_channel_is_bound_where_both_sides_can() {
        let bindable = Security::Tls { end_point: Some(vec![1; 32]) };
        let both = ["SCRAM-SHA-256-PLUS".to_owned(), "SCRAM-SHA-256".to_owned()];
        for (offered, security, wanted) in [
            (&both[..], &bindable, Some((SCRAM_SHA_256_PLUS, "p=tls-server-end-point,,"))),
            (&both[1..], &bindable, Some((SCRAM_SHA_256, "y,,"))),
            (&both[..], &TLS, Some((SCRAM_SHA_256, "n,,"))),
            (&both[..], &Security::Plain, Some((SCRAM_SHA_256, "n,,"))),
            (&both[..1], &Security::Plain, None),
            (&[], &bindable, None),
        ] {
            let chosen = mechanism(offered, security).ok().map(|(name, binding)| {
                let message = String::from_utf8_lossy(ScramSha256::new(b"", binding).message()).into_owned();
                (name, message)
            });
            assert_eq!(chosen.as_ref().map(|(name, _)| *name), wanted.map(|(name, _)| name));
            assert!(chosen.is_none_or(|(_, message)| message.starts_with(wanted.unwrap_or_default().1)));
        }
    }
}
