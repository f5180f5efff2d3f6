//! Queries of back ends over HTTPS: pages, continuations, counts, and what wrong ones are told.
//!
//! Owns: nothing. Must not know: the language in detail; the unit tests of `emulator::query` have its table.

use serde_json::{Value, json};

use crate::emulator_twins::sign_in;
use crate::harness::{Emulator, Process};
use crate::rest::policy_token;
use crate::rest_ask::{Answer, ask};
use crate::sdk::{emulator, json as read, may_use_443, python, script};

/// An emulator with devices `d00`, `d01`, … whose tag `floor` is 0, 1, 2, 0, 1, 2, …, and a module of `edge`.
fn fleet(count: usize) -> Emulator {
    let ids: Vec<String> = (0..count).map(|n| format!("d{n:02}")).collect();
    let mut arguments = vec!["--module", "edge/filter"];
    ids.iter().for_each(|id| arguments.extend(["--device", id]));
    let emulator = Emulator::start_with(&arguments);
    for (n, id) in ids.iter().enumerate() {
        let tags = json!({ "tags": { "floor": n % 3, "site": "b43" } });
        patch(&emulator, id, &tags);
    }
    emulator
}

/// Writes the twin of a device or a module.
pub(crate) fn patch(emulator: &Emulator, path: &str, twin: &Value) {
    let line = format!("PATCH /twins/{path}?api-version=2021-04-12");
    let answer = ask(emulator, &line, &policy_token(emulator, "service"), "", twin.to_string().as_bytes());
    assert_eq!(answer.status, 200, "{answer:?}");
}

/// Asks with a body as it is.
fn post(emulator: &Emulator, headers: &str, body: &[u8]) -> Answer {
    let line = "POST /devices/query?api-version=2021-04-12";
    ask(emulator, line, &policy_token(emulator, "service"), headers, body)
}

pub(crate) fn query(emulator: &Emulator, headers: &str, query: &str) -> Answer {
    post(emulator, headers, json!({ "query": query }).to_string().as_bytes())
}

/// The rows of all pages, and how many rows each page had.
fn pages(emulator: &Emulator, size: usize, text: &str) -> (Vec<Value>, Vec<usize>) {
    let (mut rows, mut sizes, mut headers) = (Vec::new(), Vec::new(), String::new());
    loop {
        let answer = query(emulator, &format!("x-ms-max-item-count: {size}\r\n{headers}"), text);
        assert_eq!(answer.status, 200, "{answer:?}");
        let page = answer.json().as_array().expect("rows").clone();
        sizes.push(page.len());
        rows.extend(page);
        match answer.header("x-ms-continuation") {
            Some(token) => headers = format!("x-ms-continuation: {token}\r\n"),
            None => return (rows, sizes),
        }
    }
}

/// What a refused query is told.
fn told(answer: &Answer) -> String {
    assert_eq!(answer.status, 400, "{answer:?}");
    let told = answer.json()["Message"].as_str().expect("a message").to_owned();
    assert!(told.starts_with("ErrorCode:ArgumentInvalid;"), "{told}");
    told
}

#[test]
fn a_query_goes_through_all_twins_page_by_page() {
    let emulator = fleet(10);
    let (rows, sizes) = pages(&emulator, 4, "SELECT deviceId FROM devices WHERE tags.floor IN [0, 1]");
    let ids: Vec<_> = rows.iter().filter_map(|row| row["deviceId"].as_str()).collect();
    assert_eq!(ids, ["d00", "d01", "d03", "d04", "d06", "d07", "d09"]);
    assert_eq!(sizes, [4, 3]);
    // A full last page has no continuation, and what no twin fits is one empty page.
    assert_eq!(pages(&emulator, 7, "SELECT deviceId FROM devices WHERE tags.floor < 2").1, [7]);
    assert_eq!(pages(&emulator, 7, "SELECT deviceId FROM devices WHERE tags.floor = 'x'").1, [0]);
    assert_eq!(pages(&emulator, 2, "SELECT TOP 3 * FROM devices").1, [2, 1]);
    assert_eq!(pages(&emulator, 100, "SELECT TOP 0 * FROM devices").1, [0]);
    // Modules are another collection.
    let (modules, _) = pages(&emulator, 100, "select * from devices.modules");
    assert_eq!(
        (modules.len(), &modules[0]["moduleId"], &modules[0]["deviceId"]),
        (1, &json!("filter"), &json!("edge"))
    );
    assert_eq!(pages(&emulator, 100, "SELECT * FROM devices").1, [11]);

    let (counted, _) = pages(&emulator, 100, "SELECT COUNT() AS n FROM devices");
    assert_eq!(counted, [json!({ "n": 11 })]);
    let groups =
        "SELECT tags.floor AS floor, COUNT() AS n FROM devices WHERE tags.site = 'b43' GROUP BY tags.floor";
    let (groups, sizes) = pages(&emulator, 2, groups);
    let expected = [(0, 4), (1, 3), (2, 3)].map(|(floor, n)| json!({ "floor": floor, "n": n }));
    assert_eq!((groups.as_slice(), sizes.as_slice()), (&expected[..], &[2, 1][..]));
}

#[test]
fn a_query_sees_what_devices_and_back_ends_do_at_once() {
    let emulator = Emulator::start();
    let connected = "SELECT deviceId FROM devices WHERE connectionState = 'Connected'";
    assert_eq!(query(&emulator, "", connected).json(), json!([]));
    let device = sign_in(&emulator, true);
    assert_eq!(query(&emulator, "", connected).json(), json!([{ "deviceId": "dev1" }]));
    drop(device);
    let twin = query(&emulator, "", "SELECT * FROM devices");
    assert_eq!(twin.header("x-ms-item-type"), Some("Twin"));
    let line = "GET /twins/dev1?api-version=2021-04-12";
    let alone = ask(&emulator, line, &policy_token(&emulator, "service"), "", b"").json();
    assert_eq!(
        (&twin.json()[0]["etag"], &twin.json()[0]["properties"]),
        (&alone["etag"], &alone["properties"])
    );
    assert_eq!(query(&emulator, "", "SELECT COUNT() FROM devices").header("x-ms-item-type"), Some("Raw"));
    let jobs = query(&emulator, "", "SELECT * FROM devices.jobs");
    assert_eq!((jobs.json(), jobs.header("x-ms-item-type")), (json!([]), Some("DeviceJob")));
}

#[test]
fn a_continuation_goes_on_when_devices_come_and_go_between_two_pages() {
    let emulator = fleet(6);
    let text = "SELECT deviceId FROM devices WHERE tags.site = 'b43'";
    let first = query(&emulator, "x-ms-max-item-count: 3\r\n", text);
    let token = first.header("x-ms-continuation").expect("more").to_owned();
    // The last device of the first page goes, and so does one of the next page.
    for id in ["d02", "d04"] {
        let line = format!("DELETE /devices/{id}?api-version=2021-04-12");
        let owner = policy_token(&emulator, "iothubowner");
        assert_eq!(ask(&emulator, &line, &owner, "If-Match: *\r\n", b"").status, 204);
    }
    let next = query(&emulator, &format!("x-ms-continuation: {token}\r\n"), text);
    assert_eq!(next.json(), json!([{ "deviceId": "d03" }, { "deviceId": "d05" }]));
}

#[test]
fn a_wrong_query_is_told_where_it_is_wrong() {
    let emulator = fleet(3);
    let text = "SELECT deviceId FROM devices";
    let page = query(&emulator, "x-ms-max-item-count: 1\r\n", text);
    let token = page.header("x-ms-continuation").expect("more").to_owned();
    let continued =
        |token: &str, text: &str| query(&emulator, &format!("x-ms-continuation: {token}\r\n"), text);
    assert_eq!(
        continued(&token, text).json(),
        json!([{ "deviceId": "d01" }, { "deviceId": "d02" }, { "deviceId": "edge" }])
    );
    for answer in [
        continued(&token, "SELECT * FROM devices"),
        continued(&token, "SELECT COUNT() FROM devices"),
        continued(&token[1..], text),
        continued("0", text),
        continued("=;é", text),
    ] {
        let said = told(&answer);
        assert!(
            said.contains("x-ms-continuation is not one that this query was given: begin again"),
            "{said}"
        );
    }
    for size in ["0", "-1", "ten", ""] {
        let said = told(&query(&emulator, &format!("x-ms-max-item-count: {size}\r\n"), text));
        assert!(said.contains(&format!("x-ms-max-item-count is \"{size}\", but must be")), "{said}");
    }
    assert_eq!(
        query(&emulator, "x-ms-max-item-count: 100000\r\n", text).json().as_array().map(Vec::len),
        Some(4)
    );

    let condition = |condition: &str| format!("SELECT * FROM devices WHERE {condition}");
    for (text, part) in [
        (
            condition("tags.site = 'b43"),
            "the query is wrong at line 1, column 41: the string has no closing '",
        ),
        (
            condition(&format!("{}1 = 1{}", "(".repeat(1_000), ")".repeat(1_000))),
            "nested more than 64 levels deep",
        ),
        (condition(&"NOT ".repeat(1_000)), "nested more than 64 levels deep"),
        (
            condition(&format!("tags.x = '{}'", "x".repeat(64 * 1024))),
            "the query has 65575 characters, more than 8192",
        ),
        (condition("tags.site == 'b43'"), "line 1, column 40: expected a property, but found \"=\""),
        (String::new(), "line 1, column 1: expected SELECT, but found the end"),
    ] {
        let said = told(&query(&emulator, "", &text));
        assert!(said.contains(part), "{said}");
    }
    for (body, part) in [
        (&b"{\"query\": \"SELECT * FROM devices WHERE x = '\xff'\"}"[..], "the body is not a query"),
        (b"", "the body is not a query: EOF"),
        (b"{\"query\": 1}", "the body is not a query: invalid type: integer `1`"),
        (b"{\"queries\": []}", "the body is not a query: missing field `query`"),
        (b"[1]", "the body is not a query"),
    ] {
        let said = told(&post(&emulator, "", body));
        assert!(said.contains(part), "{said}");
    }
    assert_eq!(query(&emulator, "", &"x".repeat(200 * 1024)).status, 413);
    // The emulator serves on.
    assert_eq!(query(&emulator, "", text).status, 200);
}

/// A query needs ServiceConnect, and `query` is not a device here: a device may have this name all the same.
#[test]
fn a_query_needs_a_back_ends_token() {
    let emulator = Emulator::start_with(&["--device", "query"]);
    let body = json!({ "query": "SELECT deviceId FROM devices" }).to_string();
    let line = "POST /devices/query?api-version=2021-04-12";
    assert_eq!(ask(&emulator, line, "", "", body.as_bytes()).status, 401);
    let owner = policy_token(&emulator, "iothubowner");
    assert_eq!(ask(&emulator, line, &owner, "", body.as_bytes()).json(), json!([{ "deviceId": "query" }]));
    let get = ask(&emulator, "GET /devices/query?api-version=2021-04-12", &owner, "", b"");
    assert_eq!(get.json()["deviceId"], "query");
}

#[test]
fn the_sdks_back_end_queries_page_by_page() {
    let test = "the SDK's back end queries";
    let Some(python) = python(test).filter(|_| may_use_443(test)) else { return };
    let ids: Vec<String> = (0..5).map(|n| format!("d{n}")).collect();
    let mut arguments = vec!["--https-port", "443"];
    ids.iter().for_each(|id| arguments.extend(["--device", id]));
    let (emulator, _dir) = emulator(&arguments);
    for (n, id) in ids.iter().enumerate() {
        patch(&emulator, id, &json!({ "tags": { "floor": n } }));
    }
    let mut service = script(&python, "service_query.py");
    service.env("SERVICE_CONNECTION_STRING", emulator.service_string());
    let service = Process::spawn(service.env("REQUESTS_CA_BUNDLE", emulator.ca_file()));
    assert_eq!(service.wait_exit().code(), Some(0), "{}", service.stderr.text());
    let seen = read(&service.stdout.wait_for("pages"));
    let expected = json!({
        "pages": [["d1", "d2"], ["d3", "d4"]], "type": "Twin", "tags": { "floor": 1 }, "count": [{ "n": 5 }],
        "count_type": "Raw", "wrong": 400,
    });
    assert_eq!(seen, expected);
}
