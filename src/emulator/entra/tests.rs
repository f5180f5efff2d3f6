//! Who gets a token, and which tokens the hub takes.

use super::*;

const NOW: Duration = Duration::from_secs(1_800_000_000);

fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + NOW
}

fn issuer(apps: &[&str]) -> EntraIssuer {
    let apps = apps.iter().map(|text| text.parse().expect("an application")).collect();
    let settings = EntraSettings { apps, token_lifetime: Duration::from_secs(60), imds_port: None };
    let key = rcgen::KeyPair::generate().expect("a key").serialize_pem();
    EntraIssuer::new(&settings, &key).expect("an issuer")
}

fn ask(issuer: &EntraIssuer, tenant: &str, more: &str) -> Result<IssuedToken, (u16, u32)> {
    let form = fields(&format!(
        "grant_type=client_credentials&scope=https%3A%2F%2Fiothubs.azure.net%2F.default&{more}"
    ));
    issuer.grant(tenant, &form, now()).map_err(|refusal| (refusal.status, refusal.code))
}

#[test]
fn an_application_gets_a_token_that_the_hub_knows_again() {
    let issuer = issuer(&["contoso/app-1=a:b:twin-contributor+data-reader", "contoso/app-2=x:y"]);
    let token = ask(&issuer, "Contoso", "client_id=APP-1&client_secret=a%3Ab").expect("a token");
    let principal = issuer.check(&token.text).expect("valid");
    assert_eq!(principal.roles, [EntraRole::TwinContributor, EntraRole::DataReader]);
    assert_eq!(principal.expires, now() + Duration::from_secs(60));
    let other = ask(&issuer, "contoso", "client_id=app-2&client_secret=x%3Ay").expect("a token");
    let other = issuer.check(&other.text).expect("valid");
    assert_eq!(other.roles, [EntraRole::DataContributor]);
    assert_ne!(other.oid, principal.oid);
    let assertion = "client_id=app-1&client_assertion_type=x&client_assertion=a:b";
    assert!(ask(&issuer, "contoso", assertion).is_ok(), "the token of another issuer");
}

#[test]
fn each_refusal_has_its_number() {
    let issuer = issuer(&["contoso/app-1=secret"]);
    let refused =
        |tenant: &str, more: &str| ask(&issuer, tenant, more).map(|token| token.text).expect_err("refused");
    assert_eq!(refused("other", "client_id=app-1&client_secret=secret"), (400, 90002));
    assert_eq!(refused("contoso", "client_id=app-2&client_secret=secret"), (400, 700016));
    assert_eq!(refused("contoso", "client_id=app-1&client_secret=Secret"), (401, 7000215));
    assert_eq!(refused("contoso", "client_id=app-1&client_assertion=a.b.c"), (401, 700213));
    assert_eq!(refused("contoso", "client_id=app-1"), (401, 7000218));
    assert_eq!(refused("contoso", "grant_type=password"), (400, 70003));
    assert_eq!(refused("contoso", "client_id=app-1&client_secret=secret&scope=openid"), (400, 1002012));
}

#[test]
fn a_token_that_was_changed_or_is_for_another_service_is_not_taken() {
    let own = issuer(&["contoso/app-1=secret"]);
    let machine = |resource: &str| {
        own.grant_machine(&fields(&format!("resource={resource}")), now()).expect("a token").text
    };
    let token = machine("https://iothubs.azure.net/");
    assert!(own.check(&token).is_ok());
    let audience = BearerError::Audience("https://vault.azure.net".into());
    assert_eq!(own.check(&machine("https://vault.azure.net")), Err(audience));
    assert_eq!(issuer(&["contoso/app-1=secret"]).check(&token), Err(BearerError::Signature));
    let mut parts: Vec<&str> = token.split('.').collect();
    let claims = URL_SAFE_NO_PAD.decode(parts[1]).expect("base64");
    let longer = String::from_utf8(claims).expect("text").replace("\"exp\":1800000060", "\"exp\":1900000000");
    let longer = URL_SAFE_NO_PAD.encode(longer);
    parts[1] = &longer;
    assert_eq!(own.check(&parts.join(".")), Err(BearerError::Signature));
    for odd in ["", ".", "..", "a.b.c", "eyJ"] {
        assert!(own.check(odd).is_err(), "{odd}");
    }
}

#[test]
fn an_application_of_the_command_line_is_read_or_refused_without_its_secret() {
    let read = |text: &str| text.parse::<AppOption>();
    let app = read("t.example/a-1=/keys/app.pem:none").expect("an application");
    assert_eq!((app.proof, app.roles), (AppSecret::Certificate("/keys/app.pem".into()), Vec::new()));
    assert_eq!(read("t/a=s:owner").expect("one").proof, AppSecret::Text("s:owner".into()));
    for wrong in ["", "t/a", "t=a", "t/a=", "t/a=:none", "/a=hush", "t/=hush", "t u/a=hush"] {
        let said = read(wrong).expect_err(wrong).to_string();
        assert!(!said.contains("hush"), "{said}");
    }
}

#[test]
fn a_bearer_token_is_told_from_a_sas_token() {
    assert_eq!(bearer("bEARER  eyJ.a.b"), Some("eyJ.a.b"));
    assert_eq!(bearer("eyJ.a.b"), Some("eyJ.a.b"));
    assert_eq!(bearer("SharedAccessSignature sr=h"), None);
    assert_eq!(bearer("é"), None);
}
