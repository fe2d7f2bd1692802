//! Proving who we are, and by SCRAM who the server is.

use bytes::Bytes;
use postgres_protocol::authentication::md5_hash;
use postgres_protocol::authentication::sasl::{
    ChannelBinding, SCRAM_SHA_256, SCRAM_SHA_256_PLUS, ScramSha256,
};
use postgres_protocol::message::frontend;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::error::{Code, Error, Result};
use crate::source::frame::{malformed, take_bytes, take_i32, take_text};
use crate::source::server_error::{Asked, ServerError};
use crate::source::wire::{Wire, nul, unexpected};
use crate::source::{AuthMethod, Binding, PostgresConfig, tls};

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
    if LoginRules::new(config, security).permit(body.clone())? {
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

/// To whom the password may be shown, and how; and what the server must ask for to be believed.
pub(crate) struct LoginRules {
    has_password: bool,
    methods: Vec<AuthMethod>,
    /// The password may be shown in clear text.
    proven: bool,
    /// The login must be bound to the server's certificate.
    must_bind: bool,
    can_bind: bool,
    /// The server has asked for something.
    asked: bool,
}

impl LoginRules {
    pub fn new(config: &PostgresConfig, security: &Security) -> Self {
        let mut methods = match config.require_auth.is_empty() {
            true => vec![AuthMethod::ScramSha256, AuthMethod::None],
            false => config.require_auth.clone(),
        };
        methods.extend(config.allow_md5.then_some(AuthMethod::Md5));
        LoginRules {
            has_password: !config.password.expose().is_empty(),
            methods,
            proven: *security != Security::Plain && tls::proves(config),
            must_bind: config.channel_binding == Binding::Require,
            can_bind: matches!(security, Security::Tls { end_point: Some(_) }),
            asked: false,
        }
    }

    /// Refuses what the server may not ask for in this Authentication packet; true when it lets us in.
    pub fn permit(&mut self, mut body: Bytes) -> Result<bool> {
        let allows = |method| self.methods.contains(&method);
        let step = take_i32(&mut body)?;
        match step {
            OK if self.asked => return Ok(true),
            OK if self.must_bind => return Err(unbound("let us in without asking for a password")),
            OK if !allows(AuthMethod::None) => return Err(asked_for_nothing()),
            OK => return Ok(true),
            MD5 | CLEARTEXT if self.must_bind => return Err(unbound("asks for a password without SCRAM")),
            SASL if !allows(AuthMethod::ScramSha256) => return Err(not_required("SCRAM")),
            SASL if self.must_bind => {
                let offered = mechanisms(&mut body)?;
                if !self.can_bind || offered.iter().all(|name| name != SCRAM_SHA_256_PLUS) {
                    return Err(unbound("cannot bind a login to its certificate"));
                }
            }
            SASL | SASL_CONTINUE | SASL_FINAL => {}
            MD5 if allows(AuthMethod::Md5) => {}
            MD5 => return Err(weak("an MD5 password", "set `postgres.allow_md5` = true")),
            CLEARTEXT if allows(AuthMethod::Password) && self.proven => {}
            CLEARTEXT => {
                let other =
                    "set `postgres.require_auth` = [\"password\"], with `postgres.sslmode` = \"verify-full\"";
                return Err(weak("the password in clear text", other));
            }
            method => return Err(unsupported(method)),
        }
        self.asked = true;
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

fn weak(what: &str, other: &str) -> Error {
    Error::new(Code::PostgresLogin, format!("PostgreSQL asks for {what}, which walcast does not show"))
        .hint(format!("{USE_SCRAM}; or {other}"))
}

fn unbound(why: &str) -> Error {
    Error::new(
        Code::PostgresLogin,
        format!("PostgreSQL {why}, and postgres.channel_binding = require asks for a login that is bound to its certificate"),
    )
    .hint(
        "let pg_hba.conf ask for scram-sha-256 over TLS, with a certificate whose signature has a hash of its own (RSA or \
         ECDSA); or set postgres.channel_binding = prefer",
    )
}

fn asked_for_nothing() -> Error {
    Error::new(Code::PostgresLogin, "PostgreSQL lets us in without asking for a password")
        .hint("postgres.require_auth does not have none: write scram-sha-256 in pg_hba.conf, or add none")
}

fn not_required(method: &str) -> Error {
    Error::new(
        Code::PostgresLogin,
        format!("PostgreSQL asks for {method}, which postgres.require_auth does not have"),
    )
    .hint("add it: export POSTGRES_REQUIRE_AUTH=scram-sha-256")
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
    use proptest::prelude::*;
    use tokio::io::AsyncWriteExt;

    use super::*;
    use crate::source::SslMode;
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
        // in clear text under a name of its own, and only to a server that has proved who it is
        let named =
            |sslmode| PostgresConfig { require_auth: vec![AuthMethod::Password], sslmode, ..config(false) };
        for (config, security) in [
            (config(true), &TLS),
            (named(SslMode::Require), &TLS),
            (named(SslMode::VerifyFull), &Security::Plain),
        ] {
            assert_eq!(log_in(&config, security, &clear).await, (Some(Code::PostgresLogin), vec![]));
        }
        let said = [clear, authentication(OK, b"")].concat();
        let (ended, heard) = log_in(&named(SslMode::VerifyFull), &TLS, &said).await;
        assert_eq!((ended, heard), (None, vec![Bytes::from_static(b"secret\0")]));
        let (ended, heard) =
            log_in(&config(true), &Security::Plain, &[md5, authentication(OK, b"")].concat()).await;
        // md5(md5("secretwalcast") + "salt")
        let digest = Bytes::from_static(b"md563222ee22bc4abd4578d462cf8b45c6c\0");
        assert_eq!((ended, heard), (None, vec![digest]));
    }

    #[tokio::test]
    async fn a_server_that_asks_for_less_than_is_required_is_not_believed() {
        let bindable = Security::Tls { end_point: Some(vec![1; 32]) };
        let (trust, md5) = (authentication(OK, b""), authentication(MD5, b"salt"));
        let plain = authentication(SASL, b"SCRAM-SHA-256\0\0");
        let bound = PostgresConfig { channel_binding: Binding::Require, ..config(true) };
        let scram = PostgresConfig { require_auth: vec![AuthMethod::ScramSha256], ..config(false) };
        let none = PostgresConfig { require_auth: vec![AuthMethod::None], ..config(false) };
        for (config, security, said) in [
            (&bound, &bindable, &trust),
            (&bound, &bindable, &md5),
            (&bound, &bindable, &plain),
            (&bound, &TLS, &authentication(SASL, b"SCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0\0")),
            (&scram, &bindable, &trust),
            (&scram, &bindable, &md5),
            (&none, &bindable, &plain),
        ] {
            assert_eq!(log_in(config, security, said).await, (Some(Code::PostgresLogin), vec![]), "{said:?}");
        }
        assert_eq!(log_in(&none, &bindable, &trust).await, (None, vec![]));
        let plus = authentication(SASL, b"SCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0\0");
        let (_, heard) = log_in(&bound, &bindable, &plus).await;
        assert!(heard.first().is_some_and(|first| first.starts_with(b"SCRAM-SHA-256-PLUS\0")), "{heard:?}");
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

    proptest::proptest! {
        /// Before it has proved anything, whoever answers may say anything.
        #[test]
        fn whatever_is_said_before_the_login_is_read_or_refused(
            step in prop_oneof![0..13i32, any::<i32>()],
            rest in prop::collection::vec(any::<u8>(), 0..120),
            bindable: bool,
        ) {
            let config = PostgresConfig { channel_binding: Binding::Require, ..PostgresConfig::default() };
            let security = match bindable {
                true => Security::Tls { end_point: Some(vec![1; 32]) },
                false => Security::Plain,
            };
            let body = Bytes::from([&step.to_be_bytes()[..], &rest].concat());
            let _ = LoginRules::new(&config, &security).permit(body.clone());
            let _ = LoginRules::new(&PostgresConfig::default(), &security).permit(body);
            let _ = ServerError::parse(Bytes::from(rest));
        }
    }
}
