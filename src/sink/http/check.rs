//! What `walcast check` looks at: whether the target can be reached. No event is posted.

use super::client;
use super::config::HttpConfig;
use crate::hop::in_clear;
use crate::sink::Finding;

/// Asks the target with `OPTIONS`; any answer shows that name, port and TLS are right.
pub async fn inspect(config: &HttpConfig) -> Vec<Finding> {
    let address = config.address();
    let mut findings = vec![match client::reach(config).await {
        Ok(status) => Finding::ok(
            "http.target",
            address.clone(),
            format!("can be reached (answers {} to OPTIONS)", status.as_u16()),
        ),
        Err(error) => Finding::failed("http.target", address.clone(), &error),
    }];
    if config.is_exposed() {
        let fix = "set HTTP_URL to the target's https address";
        findings.push(in_clear("http.tls", address.clone(), fix));
    }
    if config.signing_secrets.expose().is_empty() {
        findings.push(Finding::warn(
            "http.signature",
            address,
            "requests are not signed: the target cannot tell who has sent them",
            "set HTTP_SIGNING_SECRETS to what `echo whsec_$(openssl rand -base64 32)` prints, there and here",
        ));
    }
    findings
}
