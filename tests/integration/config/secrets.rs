//! A password is never shown.

use espd::internals::plan::worker_settings;

use super::{Folder, espd_example};

#[test]
fn a_password_is_never_shown() {
    let folder = Folder::new(&[(
        "espd.toml",
        "[event_store]\nurl = 'postgres://jo:s3cret@h/d'\n[projections]\nurl = 'postgres:///d?password=s3cret'\n",
    )]);
    let config = folder.load().unwrap();
    let worker =
        worker_settings(&config, &[&espd_example().processors[0]], config.event_store.url.as_ref().unwrap());
    let shown = format!("{config:?} {config:#?} {worker:?} {}", config.redacted());
    assert!(shown.contains("jo:***@h") && shown.contains("password=***"), "{shown}");
    assert!(!shown.contains("s3cret"), "{shown}");
}

#[test]
fn a_password_is_not_shown_by_a_fault_either() {
    for text in [
        "url = 'postgres://jo:s3cret@h/d'",
        "[event_store]\nurl = '${postgres://jo:s3cret@h/d}'",
        "[event_store]\nschema = 'postgres://jo:s3cret@h/d'",
        "'postgres://jo:s3cret@h/d' = 1",
        "[event_store]\nulr = 'postgres://jo:s3cret@h/d'",
        "[event_store]\nurl = 'postgres://jo:s3cret@h:port/d'",
        "[event_store]\nurl = 'postgre://jo:s3cret@h/d'",
        "[event_store]\nurl = 'jo:s3cret@h/d'",
        "[event_store]\nurl = 'host=h password=s3cret'",
        "[event_store]\nurl = 'postgres://jo:s3cret@h/d?port=x'",
        "[event_store]\nurl = \"\"\"\npostgres://jo:s3cret@h:port/d\"\"\"",
        "[event_store]\nurl = 'postgres://jo:s3cret@${HOST}/d'",
        "[event_store]\nurl = 'postgres://${USER}:s3cret@h/d'",
        "[event_store]\nurl = ['postgres://jo:s3cret@h/d']",
        "[event_store]\nurl = \"postgres://jo:s3cret@h/d",
        "[event_store]\nurl = postgres://jo:s3cret@h/d",
        "[event_store]\nurl 'postgres://jo:s3cret@h/d'",
        "[event_store]\npassword = 's3cret'",
        "[event_store]\nschema = '${PASSWORD}'",
        "[log]\nlevel = '${PASSWORD}'",
        "[event_store]\nlayout = '${PASSWORD}'",
        "[runner]\nbatch_size = '${PASSWORD}'",
        "[runner]\nbatch_time = '${PASSWORD}'",
        "event_store = { url = 'postgres://jo:s3cret@h/d', layuot = 'espd' }",
        "[projector]\nname='p'\non = [{events = ['${PASSWORD}', '${PASSWORD}'], sql = 'null'}]",
    ] {
        let folder = Folder::new(&[("espd.toml", text)]).with("PASSWORD", "S3cret s3cret");
        let faults = folder.load().unwrap_err();
        let shown = format!("{faults} {faults:?}");
        assert!(!shown.to_lowercase().contains("s3cret"), "{text}\n{shown}");
    }
}
