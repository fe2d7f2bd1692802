//! Proving who we are, and with SCRAM who the server is.

use bytes::Bytes;
use postgres_protocol::authentication::md5_hash;
use postgres_protocol::authentication::sasl::{
    ChannelBinding, SCRAM_SHA_256, SCRAM_SHA_256_PLUS, ScramSha256,
};
use postgres_protocol::message::frontend;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::error::{Error, Kind, Result};
use crate::source::PostgresConfig;
use crate::source::frame::{malformed, take_bytes, take_i32, take_text};
use crate::source::server_error::ServerError;
use crate::source::wire::{Wire, unexpected};

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

/// Answers the server until it lets us in.
pub(crate) async fn authenticate<S>(
    wire: &mut Wire<S>,
    config: &PostgresConfig,
    security: &Security,
) -> Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (request, mut body) = request(wire).await?;
    match request {
        OK => return Ok(()),
        SASL => scram(wire, config, security, body).await?,
        MD5 | CLEARTEXT => {
            permit(request, config.allow_md5, security)?;
            let password = password(config)?;
            let answer = match request {
                MD5 => {
                    let salt = take_bytes(&mut body, 4)?.as_ref().try_into().unwrap_or_default();
                    md5_hash(config.user.as_bytes(), password, salt)
                }
                _ => String::from_utf8_lossy(password).into_owned(),
            };
            frontend::password_message(answer.as_bytes(), wire.output()).map_err(nul)?;
            wire.flush().await?;
        }
        other => return Err(unsupported(other)),
    }
    match self::request(wire).await? {
        (OK, _) => Ok(()),
        (other, _) => Err(unsupported(other)),
    }
}

/// Refuses to show the password to somebody who should not see it.
pub(crate) fn permit(request: i32, allow_md5: bool, security: &Security) -> Result<()> {
    let (method, allowed) = match request {
        MD5 => ("an MD5 password", allow_md5),
        CLEARTEXT => ("the password in clear text", allow_md5 && *security != Security::Plain),
        _ => return Ok(()),
    };
    if allowed {
        return Ok(());
    }
    Err(Error::new(Kind::Setup, format!("PostgreSQL asks for {method}, which is refused")).hint(
        "SET password_encryption = 'scram-sha-256', set the role's password anew and write scram-sha-256 in \
         pg_hba.conf; or set `postgres.allow_md5` (clear text never without TLS)",
    ))
}

/// The next Authentication packet: what is asked, and the rest of it.
async fn request<S: AsyncRead + AsyncWrite + Unpin>(wire: &mut Wire<S>) -> Result<(i32, Bytes)> {
    loop {
        let mut packet = wire.next().await?;
        match packet.tag {
            b'R' => return Ok((take_i32(&mut packet.body)?, packet.body)),
            b'E' => return Err(ServerError::parse(packet.body)?.into_error()),
            b'N' => {}
            _ => return Err(unexpected(&packet, "before it let us in")),
        }
    }
}

async fn scram<S>(
    wire: &mut Wire<S>,
    config: &PostgresConfig,
    security: &Security,
    mut body: Bytes,
) -> Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (mechanism, binding) = mechanism(&mechanisms(&mut body)?, security)?;
    let mut scram = ScramSha256::new(password(config)?, binding);
    frontend::sasl_initial_response(mechanism, scram.message(), wire.output()).map_err(nul)?;
    wire.flush().await?;

    let challenge = expect(wire, SASL_CONTINUE).await?;
    scram.update(&challenge).map_err(scram_failed)?;
    frontend::sasl_response(scram.message(), wire.output()).map_err(nul)?;
    wire.flush().await?;

    let proof = expect(wire, SASL_FINAL).await?;
    scram.finish(&proof).map_err(scram_failed)
}

async fn expect<S: AsyncRead + AsyncWrite + Unpin>(wire: &mut Wire<S>, wanted: i32) -> Result<Bytes> {
    match request(wire).await? {
        (asked, body) if asked == wanted => Ok(body),
        (asked, _) => Err(malformed(format!("authentication step {asked} where {wanted} was due"))),
    }
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

/// The channel is bound wherever both sides can; "the server cannot" is told to it under the signature,
/// so that somebody in between who took -PLUS off the list is found out.
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
        _ => Err(Error::new(
            Kind::Setup,
            format!("PostgreSQL offers no SASL mechanism that walcast has, only {}", offered.join(", ")),
        )
        .hint("let the role log in by scram-sha-256")),
    }
}

fn password(config: &PostgresConfig) -> Result<&[u8]> {
    match config.password.expose() {
        "" => Err(Error::new(Kind::Setup, "PostgreSQL asks for a password and none is configured")
            .hint("set `postgres.password`, POSTGRES_PASSWORD or POSTGRES_PASSWORD_FILE")),
        password => Ok(password.as_bytes()),
    }
}

fn scram_failed(error: std::io::Error) -> Error {
    Error::new(Kind::Setup, "the SCRAM exchange with PostgreSQL failed")
        .hint("the server does not know the password, or somebody stands between: see `postgres.host`")
        .because(error)
}

fn nul(error: std::io::Error) -> Error {
    Error::new(Kind::Config, "`postgres` has a setting with a NUL character in it")
        .hint("take the NUL character out of the user, password, database or slot name")
        .because(error)
}

fn unsupported(request: i32) -> Error {
    Error::new(
        Kind::Setup,
        format!("PostgreSQL asks for authentication method {request}, which walcast lacks"),
    )
    .hint("let the role log in by scram-sha-256 in pg_hba.conf")
}
