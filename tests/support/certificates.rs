//! Certificates of a test's own.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::{env, fresh_name};

/// A folder of certificates `NAME.crt`, each with its key in `NAME.key`, by the openssl command.
pub struct Certificates {
    pub path: PathBuf,
}

impl Certificates {
    pub fn new() -> Self {
        let path = std::env::temp_dir().join(fresh_name("walcast_certificates"));
        std::fs::create_dir(&path).unwrap();
        Certificates { path }
    }

    /// Self-signed.
    pub fn make(&self, name: &str, options: &[&str], alt_name: &str) -> PathBuf {
        let (certificate, key) = self.paths(name);
        let alt_name = format!("subjectAltName={alt_name}");
        openssl(
            &["req", "-x509", "-nodes", "-days", "2", "-subj", "/CN=walcast", "-addext", &alt_name],
            &[options, &["-keyout", &key, "-out", &certificate]].concat(),
        );
        certificate.into()
    }

    /// Signed by the certificate `authority`.
    pub fn sign(&self, name: &str, alt_name: &str, authority: &Path) -> PathBuf {
        let (certificate, key) = self.paths(name);
        let (request, extensions) = (format!("{certificate}.csr"), format!("{certificate}.ext"));
        std::fs::write(&extensions, format!("subjectAltName={alt_name}\nbasicConstraints=CA:FALSE\n"))
            .unwrap();
        let subject = ["req", "-new", "-nodes", "-newkey", "rsa:2048", "-subj", "/CN=walcast"];
        openssl(&subject, &["-keyout", &key, "-out", &request]);
        let (authority, authority_key) = (authority.display().to_string(), authority.with_extension("key"));
        openssl(
            &["x509", "-req", "-days", "2", "-in", &request, "-extfile", &extensions, "-out", &certificate],
            &["-CA", &authority, "-CAkey", &authority_key.display().to_string(), "-set_serial", "7"],
        );
        certificate.into()
    }

    fn paths(&self, name: &str) -> (String, String) {
        let path = |extension| self.path.join(name).with_extension(extension).display().to_string();
        (path("crt"), path("key"))
    }
}

impl Drop for Certificates {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.path);
    }
}

fn openssl(arguments: &[&str], more: &[&str]) {
    let ended = Command::new(env("OPENSSL", "openssl")).args(arguments).args(more).output().unwrap();
    assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
}
