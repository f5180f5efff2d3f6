//! Which source of tokens an environment means, and what is said of a bad one.

use super::*;

use std::time::Duration;

fn read(method: AuthMethod, variables: &[(&str, &str)]) -> Result<EntraLogin, String> {
    EntraLogin::read(method, &lookup(variables)).map_err(|error| error.to_string())
}

fn lookup(variables: &[(&str, &str)]) -> impl Fn(&str) -> Option<String> {
    let all: Vec<_> =
        variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    move |name| all.iter().find(|(own, _)| own == name).map(|(_, value)| value.clone())
}

const APP: [(&str, &str); 2] = [("AZURE_TENANT_ID", "contoso.example"), ("AZURE_CLIENT_ID", "app-1")];

#[test]
fn the_environment_declares_one_method_in_a_fixed_order() {
    let declared = |variables: &[(&str, &str)]| AuthMethod::declared(&lookup(variables));
    assert_eq!(declared(&APP), None);
    assert_eq!(declared(&[("AZURE_CLIENT_SECRET", "  ")]), None);
    let secret = ("AZURE_CLIENT_SECRET", "s");
    let token = ("AZURE_FEDERATED_TOKEN_FILE", "/t");
    assert_eq!(declared(&[token, secret]), Some((AuthMethod::Secret, "AZURE_CLIENT_SECRET")));
    assert_eq!(declared(&[token]), Some((AuthMethod::Federated, "AZURE_FEDERATED_TOKEN_FILE")));
    let identity = ("IDENTITY_ENDPOINT", "http://localhost:1/");
    assert_eq!(declared(&[identity]), None);
    let header = ("IDENTITY_HEADER", "h");
    assert_eq!(declared(&[identity, header]), Some((AuthMethod::Managed, "IDENTITY_ENDPOINT")));
    let imds = ("IMDS_ENDPOINT", "http://localhost:1/");
    assert_eq!(declared(&[identity, header, imds]), Some((AuthMethod::Arc, "IMDS_ENDPOINT")));
}

#[test]
fn an_application_is_read_with_its_authority() {
    let own = [APP.to_vec(), vec![("AZURE_CLIENT_SECRET", "hush")]].concat();
    let login = read(AuthMethod::Secret, &own).expect("complete");
    assert_eq!(
        login.to_string(),
        "application app-1 of tenant contoso.example at https://login.microsoftonline.com, with its client secret"
    );
    assert!(!format!("{login:?}").contains("hush"), "{login:?}");
    let china = [own, vec![("AZURE_AUTHORITY_HOST", "login.chinacloudapi.cn/")]].concat();
    assert!(
        read(AuthMethod::Secret, &china).expect("complete").to_string().contains("login.chinacloudapi.cn,")
    );
    assert_eq!(
        read(AuthMethod::Certificate, &APP[..1]).expect_err("incomplete"),
        "--auth certificate needs AZURE_CLIENT_ID and AZURE_CLIENT_CERTIFICATE_PATH in the environment: set what is missing"
    );
    let odd = [("AZURE_TENANT_ID", "a/b?c"), APP[1], ("AZURE_CLIENT_SECRET", "s")];
    assert!(read(AuthMethod::Secret, &odd).expect_err("a path").contains("AZURE_TENANT_ID is \"a/b?c\""));
}

#[test]
fn a_managed_identity_is_that_of_the_machine_unless_an_app_service_says_more() {
    assert_eq!(
        read(AuthMethod::Managed, &[]).expect("complete").to_string(),
        "the managed identity at http://169.254.169.254/metadata/identity/oauth2/token"
    );
    let service = [("IDENTITY_ENDPOINT", "http://127.0.0.1:41/msi/token"), ("IDENTITY_HEADER", "h"), APP[1]];
    let login = read(AuthMethod::Managed, &service).expect("complete");
    assert_eq!(login.to_string(), "the managed identity app-1 at http://127.0.0.1:41/msi/token");
    assert!(matches!(&login, EntraLogin::Managed { header: Some(header), .. } if header.expose() == "h"));
}

#[test]
fn plain_http_stays_on_this_machine() {
    for here in [
        "http://localhost:1/a",
        "http://169.254.1.2",
        "http://[::1]:4",
        "HTTP://127.9.9.9/",
        "http://[fe80::1]",
    ] {
        assert!(TokenEndpoint::parse(here).is_ok(), "{here}");
    }
    for away in
        ["http://10.0.0.1", "http://login.example/x", "http://[2001:db8::1]", "http://localhost.example"]
    {
        assert_eq!(TokenEndpoint::parse(away), Err(EndpointError::Plain), "{away}");
    }
    for odd in [
        "",
        "login.example",
        "https://",
        "https://a b",
        "https://u:p@h/",
        "ftp://h",
        "https://h/?q",
        "https://é/",
    ] {
        assert_eq!(TokenEndpoint::parse(odd), Err(EndpointError::Malformed), "{odd}");
    }
    let said = read(AuthMethod::Managed, &[("AZURE_POD_IDENTITY_AUTHORITY_HOST", "http://10.1.1.1")]);
    assert_eq!(
        said.expect_err("another machine"),
        "AZURE_POD_IDENTITY_AUTHORITY_HOST begins with http://, but is not an address of this machine: use https://"
    );
}

#[test]
fn a_token_says_who_it_is_for_and_does_not_print_itself() {
    let end = SystemTime::UNIX_EPOCH + Duration::from_secs(9);
    let payload = URL_SAFE_NO_PAD.encode(r#"{"azp":"app-1","oid":"o-1","tid":"t-1","aud":"x","exp":9}"#);
    let token = BearerToken::new(&format!("h.{payload}.s"), end).expect("a token");
    let claims = token.claims().expect("claims");
    assert_eq!((claims.appid.as_deref(), claims.oid.as_deref()), (Some("app-1"), Some("o-1")));
    assert_eq!(token.expose(), format!("Bearer h.{payload}.s"));
    assert!(!format!("{token:?}").contains(&payload), "{token:?}");
    for opaque in ["abc", "a.!.c", "a.YQ.c"] {
        assert_eq!(BearerToken::new(opaque, end).expect("a token").claims(), None, "{opaque}");
    }
    for broken in ["", "a b", "a\r\nX: y", "é"] {
        assert_eq!(BearerToken::new(broken, end), None, "{broken:?}");
    }
}
