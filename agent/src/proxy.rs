//! HTTP proxies: which one leads to a server, if any.
//!
//! What `agent.toml` says holds; where it names none, the environment does, as curl reads it (`HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY`,
//! `NO_PROXY`, lower case first). It opens no connection. Law: credentials are in no text that anybody could log; what is wrong with the
//! configuration ends the start, and what is wrong with the environment is said and passed over.

mod bypass;

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::config::ProxyConfig;
use bypass::Bypass;

/// The port of a proxy whose URL in the environment names none: curl's (curl(1), --proxy).
const PORT_DEFAULT: u16 = 1080;

/// What is said of a word that excepts no host.
const NO_WORD: &str =
    "is no name, address or network: write example.org, 192.0.2.7 or 10.0.0.0/8, each with :PORT or without";

/// One HTTP proxy.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Proxy {
    /// `host:port`.
    address: String,
    /// The value of Proxy-Authorization.
    authorization: Option<String>,
}

impl fmt::Debug for Proxy {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let credentials =
            if self.authorization.is_some() { "with credentials" } else { "without credentials" };
        write!(formatter, "{} {credentials}", self.address)
    }
}

impl Proxy {
    /// Where it listens, `host:port`.
    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// What it is told of who asks (RFC 7617), if anything.
    pub(crate) fn authorization(&self) -> Option<&str> {
        self.authorization.as_deref()
    }

    /// Reads `http://user:password@host:port` of the configuration; `password` is one that is kept elsewhere.
    ///
    /// # Errors
    /// What is wrong, without a word of the URL: it may hold a password.
    fn parse(url: &str, password: Option<&str>) -> Result<Self, &'static str> {
        Self::of(Parts::of(url), password, None)
    }

    /// The same of the environment, where what curl passes over is passed over: a port that is left out, a path, a `%` that is no escape.
    fn parse_as_curl(url: &str) -> Result<Self, &'static str> {
        let from = url.find("://").map_or(0, |at| at + 3);
        let to = url[from..].find(['/', '?', '#']).map_or(url.len(), |at| from + at);
        let Parts { scheme, user_info, address } = Parts::of(&url[..to]);
        let user_info = user_info.map(literal_percent);
        Self::of(Parts { scheme, user_info: user_info.as_deref(), address }, None, Some(PORT_DEFAULT))
    }

    fn of(parts: Parts<'_>, password: Option<&str>, port_default: Option<u16>) -> Result<Self, &'static str> {
        let Parts { scheme, user_info, address } = parts;
        if scheme.is_some_and(|scheme| !scheme.eq_ignore_ascii_case("http")) {
            return Err("is not of an HTTP proxy: write http://HOST:PORT");
        }
        let address = address.strip_suffix('/').unwrap_or(address);
        let (host, port) = match address.rsplit_once(':') {
            Some((host, port)) if !port.ends_with(']') => {
                let port = port.parse().ok().filter(|port| *port != 0);
                (host, port.ok_or("has a port that is none")?)
            }
            _ => (address, port_default.ok_or("has no port: write http://HOST:PORT")?),
        };
        if !is_host(host) {
            return Err("has a host that is none: write http://HOST:PORT");
        }
        let authorization = user_info.map(|user_info| authorization(user_info, password)).transpose()?;
        if authorization.is_none() && password.is_some() {
            return Err("names no user for the password: write http://USER@HOST:PORT");
        }
        Ok(Self { address: format!("{host}:{port}"), authorization })
    }
}

/// Of a proxy's URL.
#[derive(Clone, Copy)]
struct Parts<'a> {
    scheme: Option<&'a str>,
    user_info: Option<&'a str>,
    address: &'a str,
}

impl<'a> Parts<'a> {
    fn of(url: &'a str) -> Self {
        let is_scheme = |text: &str| text.bytes().all(|byte| byte.is_ascii_alphanumeric());
        let (scheme, rest) = match url.split_once("://") {
            Some((scheme, rest)) if is_scheme(scheme) => (Some(scheme), rest),
            // It stands in a password that was not encoded.
            _ => (None, url),
        };
        let (user_info, address) =
            rest.rsplit_once('@').map_or((None, rest), |(user_info, address)| (Some(user_info), address));
        Self { scheme, user_info: user_info.filter(|text| !text.is_empty()), address }
    }
}

/// Whether a proxy's URL has a password in it.
pub(crate) fn has_password(url: &str) -> bool {
    Parts::of(url).user_info.is_some_and(|user_info| user_info.contains(':'))
}

/// Basic credentials (RFC 7617) from the user information of a URL (RFC 3986, 3.2.1).
fn authorization(user_info: &str, password: Option<&str>) -> Result<String, &'static str> {
    let (user, own) = user_info.split_once(':').map_or((user_info, None), |(user, own)| (user, Some(own)));
    let user = percent_decoded(user).ok_or("has a user name with a % that is no escape")?;
    if user.contains(&b':') {
        return Err("has a user name with a colon, which Basic credentials cannot have");
    }
    let password = match (password, own) {
        (Some(_), Some(_)) => return Err("has a password, and password_file another: leave one out"),
        (Some(kept), None) => kept.as_bytes().to_vec(),
        (None, own) => {
            percent_decoded(own.unwrap_or("")).ok_or("has a password with a % that is no escape")?
        }
    };
    Ok(format!("Basic {}", STANDARD.encode([&user[..], b":", &password].concat())))
}

/// Escapes each `%` that begins no escape.
fn literal_percent(text: &str) -> String {
    let mut parts = text.split('%');
    let mut escaped = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let is_escape =
            part.as_bytes().first_chunk::<2>().is_some_and(|two| two.iter().all(u8::is_ascii_hexdigit));
        escaped += if is_escape { "%" } else { "%25" };
        escaped += part;
    }
    escaped
}

/// `None` when a `%` is not followed by two hexadecimal digits.
fn percent_decoded(text: &str) -> Option<Vec<u8>> {
    let (mut bytes, mut decoded) = (text.bytes(), Vec::new());
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            decoded.push(byte);
            continue;
        }
        let mut digit = || char::from(bytes.next()?).to_digit(16);
        let (high, low) = (digit()?, digit()?);
        decoded.push((high << 4 | low) as u8);
    }
    Some(decoded)
}

/// Whether a text can be a host in a request's head: a name, an IPv4 address, or an IPv6 address in brackets.
pub(crate) fn is_host(text: &str) -> bool {
    let is_bracketed = text.starts_with('[') && text.ends_with(']');
    let inner = if is_bracketed { &text[1..text.len() - 1] } else { text };
    !inner.is_empty()
        && inner.bytes().all(|byte| {
            byte.is_ascii_alphanumeric() || b"-._".contains(&byte) || (is_bracketed && byte == b':')
        })
}

/// The proxies that this machine goes through.
#[derive(Clone, Debug, Default)]
pub(crate) struct Proxies {
    /// Towards HTTPS ports.
    https: Option<Arc<Proxy>>,
    /// Towards HTTP ports.
    http: Option<Arc<Proxy>>,
    bypass: Bypass,
}

impl Proxies {
    /// What `config` says; where it names no proxy, what `environment` does, if it may.
    ///
    /// # Errors
    /// What is wrong in the configuration, or with the file of the password.
    pub(crate) fn new(
        config: &ProxyConfig,
        environment: impl Fn(&str) -> Option<String>,
    ) -> anyhow::Result<Self> {
        let bypass = configured_bypass(&config.no_proxy)?;
        if let Some(url) = config.url() {
            let password = config.password_file.as_deref().map(read_password).transpose()?;
            let proxy = Proxy::parse(url, password.as_deref());
            let proxy = proxy.map_err(|fault| anyhow::anyhow!("proxy.url {fault}"))?;
            let proxy = Some(Arc::new(proxy));
            return Ok(Self { https: proxy.clone(), http: proxy, bypass });
        }
        if config.password_file.is_some() {
            bail!("proxy.password_file is set and proxy.url is not");
        }
        if !config.use_environment {
            return Ok(Self::default());
        }
        Ok(Self::of_environment(environment, bypass))
    }

    fn of_environment(environment: impl Fn(&str) -> Option<String>, mut bypass: Bypass) -> Self {
        // An empty variable is none.
        let set = |name: &str| environment(name).filter(|value| !value.is_empty());
        // Upper case as well for HTTP: only in a CGI program could a peer set that (curl(1), ENVIRONMENT).
        let read = |names: [&str; 4]| {
            let (name, url) = names.into_iter().find_map(|name| Some((name.to_owned(), set(name)?)))?;
            Proxy::parse_as_curl(url.trim())
                .inspect_err(|fault| tracing::warn!("{name} in the environment {fault}; it is passed over"))
                .ok()
                .map(Arc::new)
        };
        let listed = ["no_proxy", "NO_PROXY"].into_iter().find_map(set).unwrap_or_default();
        for (place, word) in listed.split([',', ' ']).filter(|word| !word.is_empty()).enumerate() {
            if !bypass.add(word) {
                tracing::warn!(
                    "word {} of no_proxy in the environment {NO_WORD}; it is passed over",
                    place + 1
                );
            }
        }
        Self {
            https: read(["https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"]),
            http: read(["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"]),
            bypass,
        }
    }

    /// The proxy to `port` of `host`, where one is set and this host is not excepted.
    pub(crate) fn to(&self, host: &str, port: u16, is_https: bool) -> Option<&Arc<Proxy>> {
        let proxy = if is_https { &self.https } else { &self.http };
        proxy.as_ref().filter(|_| !self.bypass.has(host, port))
    }
}

/// What `proxy.no_proxy` excepts. Its words are not shown: one may be a URL, with a password.
fn configured_bypass(words: &[String]) -> anyhow::Result<Bypass> {
    let mut bypass = Bypass::default();
    for (place, word) in words.iter().enumerate() {
        if !bypass.add(word) {
            bail!("word {} of proxy.no_proxy {NO_WORD}", place + 1);
        }
    }
    Ok(bypass)
}

fn read_password(path: &Path) -> anyhow::Result<String> {
    let bytes = bgb_daemon::secret::read(path)?;
    let text =
        String::from_utf8(bytes).ok().with_context(|| format!("{}: is not UTF-8 text", path.display()))?;
    // An editor ends a line; a password that ends with one is written percent-encoded into the URL.
    Ok(text
        .strip_suffix('\n')
        .map_or(text.as_str(), |line| line.strip_suffix('\r').unwrap_or(line))
        .to_owned())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn of(variables: &[(&str, &str)]) -> Proxies {
        let environment = |name: &str| {
            variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
        };
        Proxies::new(&ProxyConfig::default(), environment).unwrap()
    }

    fn configured(text: &str) -> anyhow::Result<Proxies> {
        let config: ProxyConfig = bgb_daemon::config::parse(Path::new("agent.toml"), text).unwrap();
        Proxies::new(&config, |_| Some("http://elsewhere.example:1".to_owned()))
    }

    fn address(proxies: &Proxies, host: &str, is_https: bool) -> Option<String> {
        proxies.to(host, 8443, is_https).map(|proxy| proxy.address().to_owned())
    }

    #[test]
    fn the_configuration_goes_before_the_environment() {
        let proxies =
            configured("url = \"http://proxy.example:3128\"\nno_proxy = [\".lab.example\"]").unwrap();
        assert_eq!(address(&proxies, "bgb.example", true).as_deref(), Some("proxy.example:3128"));
        assert_eq!(address(&proxies, "bgb.example", false).as_deref(), Some("proxy.example:3128"));
        assert_eq!(address(&proxies, "bgb.lab.example", true), None);
        assert_eq!(address(&configured("use_environment = false").unwrap(), "bgb.example", true), None);
        assert_eq!(
            address(&configured("").unwrap(), "bgb.example", true).as_deref(),
            Some("elsewhere.example:1")
        );
    }

    #[test]
    fn the_environment_is_read_as_curl_does() {
        let proxies = of(&[
            ("HTTPS_PROXY", "http://upper.example:1"),
            ("https_proxy", "lower.example"),
            ("ALL_PROXY", "http://[2001:db8::7]:8080/"),
            ("NO_PROXY", "localhost, .lab.example"),
        ]);
        assert_eq!(address(&proxies, "bgb.example", true).as_deref(), Some("lower.example:1080"));
        assert_eq!(address(&proxies, "bgb.example", false).as_deref(), Some("[2001:db8::7]:8080"));
        assert_eq!(address(&proxies, "localhost", true), None);
        // An empty variable is none, and an empty name before a proxy nobody's.
        let proxies =
            of(&[("all_proxy", "http://@proxy.example:1"), ("no_proxy", ""), ("NO_PROXY", "localhost")]);
        assert_eq!(address(&proxies, "localhost", true), None);
        assert_eq!(proxies.to("bgb.example", 1, true).unwrap().authorization(), None);
        // A path says nothing of a proxy, and a % is one where it begins no escape.
        let proxies = of(&[("all_proxy", "http://us%20er:100%pure%@proxy.example:3128/x?y@z")]);
        let proxy = proxies.to("bgb.example", 1, true).unwrap();
        let value = format!("Basic {}", STANDARD.encode("us er:100%pure%"));
        assert_eq!((proxy.address(), proxy.authorization()), ("proxy.example:3128", Some(&*value)));
        // One of another kind is passed over.
        assert_eq!(address(&of(&[("all_proxy", "socks5://socks.example:1")]), "bgb.example", true), None);
    }

    #[test]
    fn an_exception_that_means_nothing_ends_the_start_and_in_the_environment_is_passed_over() {
        for more in ["url = \"http://proxy.example:1\"", "", "use_environment = false"] {
            let text = format!("no_proxy = [\"localhost\", \"http://u:secret@10.0.0.0/33\"]\n{more}");
            let fault = configured(&text).unwrap_err().to_string();
            assert!(fault.contains("word 2 of proxy.no_proxy") && !fault.contains("secret"), "{fault}");
        }
        let proxies = of(&[("http_proxy", "proxy.example:1"), ("no_proxy", "10.0.0.0/33, ,localhost")]);
        assert_eq!(address(&proxies, "localhost", false), None);
        assert_eq!(address(&proxies, "10.0.0.0", false).as_deref(), Some("proxy.example:1"));
    }

    #[test]
    fn credentials_are_decoded_and_never_shown() {
        let proxy = Proxy::parse("http://us%20er:p%40ss:w%C3%B6rd@proxy.example:3128", None).unwrap();
        let value = format!("Basic {}", STANDARD.encode("us er:p@ss:wörd"));
        assert_eq!(proxy.authorization(), Some(&*value));
        let shown = format!("{proxy:?}");
        assert_eq!(shown, "proxy.example:3128 with credentials");
        for wrong in
            ["http://u:secret@proxy", "http://u:secret@:1", "http://u:se%ret@p:1", "ftp://u:secret@p:1"]
        {
            let fault = Proxy::parse(wrong, None).unwrap_err();
            assert!(!fault.contains("secret") && !fault.contains("se%"), "{fault}");
        }
    }

    #[test]
    fn a_password_may_be_in_a_file_of_its_own_that_nobody_else_reads() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("proxy.password");
        std::fs::write(&path, "pa%73s\n").unwrap();
        let text = format!("url = \"http://user@proxy.example:1\"\npassword_file = {path:?}");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert!(configured(&text).unwrap_err().to_string().contains("chmod 600"));
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        let proxies = configured(&text).unwrap();
        let value = format!("Basic {}", STANDARD.encode("user:pa%73s"));
        assert_eq!(proxies.to("bgb.example", 1, true).unwrap().authorization(), Some(&*value));
        for wrong in [text.replace("user@", "user:other@"), text.replace("user@", "")] {
            assert!(configured(&wrong).unwrap_err().to_string().contains("password"));
        }
    }
}
