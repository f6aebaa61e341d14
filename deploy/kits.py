"""What an engineer does with start-up kits: plan a project, make the kits, set them up, renew a certificate, knock at the server.

A kit is the folder that a participant gets: a key, a certificate, and scripts to start with. Nothing here starts a process.
https://nvflare.readthedocs.io/en/main/programming_guide/provisioning_system.html
"""

import importlib.util
import json
import logging
import re
import socket
import ssl
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta, timezone
from math import inf
from numbers import Real
from pathlib import Path

import pandas as pd
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from nvflare.apis.fl_constant import WorkspaceConstants
from nvflare.lighter.prov_utils import prepare_builders
from nvflare.lighter.provision import prepare_project
from nvflare.lighter.provisioner import Provisioner
from nvflare.lighter.utils import load_crt, load_crt_bytes, load_private_key, serialize_cert, update_storage_locations
from nvflare.recipe.spec import Recipe

from src.common.datalists import site_names
from src.common.errors import CourseError, all_of, first_line, some_of
from src.common.files import write_file, write_json
from src.federation.flare_2_9 import job_of

SERVER, ADMIN, LEAD, MEMBER = "server", "admin@example.org", "lead@example.org", "member@example.org"
USERS = {ADMIN: "project_admin", LEAD: "lead", MEMBER: "member"}
"""Who may log in, and the role that their certificate gives them: a lead, a researcher, submits jobs; a member only looks."""
REVIEWED = (
    "src.",
    "nvflare.app_common.executors.learner_executor.LearnerExecutor",
    "nvflare.app_opt.pt.file_model_persistor.PTFileModelPersistor",
)
"""What the prostate learner's job names beside FLARE's default list, where the course is installed: see :func:`set_up_site`."""
ORDER_SECONDS = 60.0
"""How long a site has to answer an order of the server, such as to take a job. FLARE's 10 s are short on a busy machine."""
ROOT_DAYS = 1825
"""How long a project's root holds. FLARE's value is 360, and no certificate holds longer than its root."""
KNOCK_SECONDS = 10.0
MINUTE = "%Y-%m-%d %H:%M UTC"
SILENCE_SECONDS = 25.0
"""After so long without a heartbeat the server takes a site for lost. FLARE's value is 600, right for long lines."""


def project(sites: Sequence[str], port: int, host: str = "localhost", name: str = "course", he: bool = False) -> dict:
    """What ``nvflare provision`` reads as ``project.yml``: who takes part, and how the kits are made.

    All call the server by ``host``, a name or address for which its certificate holds, and ``port``. Kits of two projects do not
    know each other. With ``he``, kits also hold FLARE's keys for homomorphic encryption: ``startup/client_context.tenseal`` of a
    site the one secret key that all sites share, ``startup/server_context.tenseal`` none. A ``CourseError`` for what FLARE, TLS or
    X.509 would refuse later, or never work with, and where TenSEAL is not installed.
    """
    if he:
        need_tenseal()
    label = "[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
    own = isinstance(name, str) and re.fullmatch("(?ai)[a-z0-9][a-z0-9_-]{0,63}", name)
    found = isinstance(host, str) and len(host) <= 253 and re.fullmatch(rf"(?ai){label}(\.{label})*", host)
    right = {
        f"its name {name!r} must be letters, digits, - and _, 64 at most: a folder's and a certificate's": own,
        f"its port {port!r} must be a whole number from 1 to 65535": type(port) is int and 0 < port < 65536,
        f"its host {host!r} must be an address, or a name of letters, digits and - with dots between": found,
    }
    if problems := [what for what, holds in right.items() if not holds]:
        raise all_of("The project cannot be made", problems)
    server = {"name": SERVER, "type": "server", "org": "school", "fed_learn_port": port, "default_host": host}
    orgs = {site: f"hospital_{site}".replace("-", "_") for site in site_names(sites)}
    hospitals = [{"name": site, "type": "client", "org": org} for site, org in orgs.items()]
    people = [{"name": user, "type": "admin", "org": "school", "role": role} for user, role in USERS.items()]
    steps = {"workspace.WorkspaceBuilder": {}, "static_file.StaticFileBuilder": {"config_folder": "config"}}
    steps |= {"he.HEBuilder": {}} if he else {}
    steps |= {"cert.CertBuilder": {"root_valid_days": ROOT_DAYS}, "signature.SignatureBuilder": {}}
    return {
        "api_version": 3,
        "name": name,
        "description": "server and sites of the course",
        # By default every site streams its error log to the server, with all file names that are in it. FLARE 2.9 heeds this
        # switch here and in a site's own local/resources.json; as a property of a participant it does not.
        "allow_log_streaming": False,
        "participants": [server, *hospitals, *people],
        "builders": [{"path": f"nvflare.lighter.impl.{step}", "args": args} for step, args in steps.items()],
    }


def need_tenseal() -> None:
    """A ``CourseError`` where the package is not installed by which FLARE encrypts."""
    if not importlib.util.find_spec("tenseal"):
        said = "Homomorphic encryption needs the package TenSEAL, which is not installed: pip install tenseal. "
        raise CourseError(f"{said}There are wheels for Linux and for macOS on arm64, from Python 3.11 on.")


def provision(folder: Path, about: dict) -> dict[str, Path]:
    """Make ``project.yml`` and a start-up kit for each participant in ``folder``, as ``nvflare provision`` does; returns the kits'
    folders by name. A ``CourseError``, and no file, if FLARE refuses what :func:`project` has made."""
    text = yaml.safe_dump(about, sort_keys=False)
    try:
        read = yaml.safe_load(text)  # FLARE empties what it is given
        provisioner, planned = Provisioner(str(folder), prepare_builders(read)), prepare_project(read)
    except (ValueError, TypeError) as error:
        raise CourseError(f"FLARE refuses the project {about.get('name')!r}: {first_line(error)}") from error
    file = write_file(folder / "project.yml", text)
    made = provisioner.provision(planned, logger=logging.getLogger(__name__))
    if made.get("build_error") or "current_prod_dir" not in made:
        raise CourseError(f"FLARE could not provision {file}; what it printed says why.")
    kits = {one["name"]: Path(made["current_prod_dir"]) / one["name"] for one in about["participants"]}
    for secret in (kit / "startup" / "client_context.tenseal" for kit in kits.values()):
        if secret.exists():  # FLARE 2.9 lets every user of the machine read it, unlike a kit's private key
            secret.chmod(0o600)
    return kits


def _whole(kit: Path) -> Path:
    kit = Path(kit)
    if not all((kit / "local" / f"{name}.json.default").is_file() for name in ("resources", "authorization")):
        raise CourseError(
            f"{kit} is not the kit of a server or a site. Give the folder that `local` and `startup` are in."
        )
    return kit


def set_up_server(kit: Path, silence: float = SILENCE_SECONDS, storage: str | None = ".") -> None:
    """Write a server's ``local/resources.json`` anew, with :mod:`deploy.returning`; :func:`set_up_site` comes after it.

    Args:
        kit: of the server. In it jobs and results lie then, and not in a fixed folder of the machine, which all servers share.
        silence: seconds without a heartbeat after which a site is lost.
        storage: folder for jobs and results, from the kit's folder on. None leaves them where the kit has them, for a kit that
            ``nvflare deploy prepare`` has made: there that is a path inside the container, or on the cluster.
    """
    if isinstance(silence, bool) or not isinstance(silence, Real) or not 0 < silence < inf:
        raise CourseError(f"silence is {silence!r}; give a number of seconds above 0.")
    file = _whole(kit) / "local" / "resources.json"
    if storage is not None:  # FLARE's function reads the default and writes the file
        update_storage_locations(str(kit / "local"), str(kit.absolute() / storage))
    resources = json.loads((file if storage is not None else Path(f"{file}.default")).read_text())
    resources["servers"][0] |= {"heart_beat_timeout": silence, "admin_timeout": ORDER_SECONDS}
    resources["components"].append({"id": "returning_sites", "path": "deploy.returning.ReturningSites", "args": {}})
    write_json(file, resources)


def set_up_site(kit: Path, classes: Sequence[str] = (), brings_code: bool = True) -> None:
    """Write down what a site, or the server, allows jobs and users to do, on top of FLARE's defaults, from its next start on.

    FLARE also lets the project's administrator, and users of the site's own organisation, read files of the site from afar (``ls``,
    ``cat``, ``grep``): logs with names of cases, and what else its account may read. Here that is switched off for everybody.

    Args:
        kit: of a site or the server, in ``local/`` of which the two files come.
        classes: names or, with a dot at the end, packages whose classes a job without code of its own may name, beside FLARE's own
            list. A site that reviews code and installs it names what it has installed, and forbids the rest by
        brings_code: whether a job may bring code along (BYOC, *bring your own code*), which a lead's may by default.
    """
    if isinstance(classes, str) or not all(isinstance(name, str) and name.strip(".") for name in classes):
        raise CourseError(
            f"classes is {classes!r}; give a list of names, such as REVIEWED. FLARE allows what begins with one."
        )
    if not isinstance(brings_code, bool):
        raise CourseError(f"brings_code is {brings_code!r}; give True or False.")
    resources, rules = (_whole(kit) / "local" / f"{name}.json" for name in ("resources", "authorization"))
    default = json.loads((resources if resources.exists() else Path(f"{resources}.default")).read_text())
    default["class_allow_list"] += [name for name in classes if name not in default["class_allow_list"]]
    write_json(resources, default)
    rights = json.loads(Path(f"{rules}.default").read_text())
    named = {right for allowed in rights["permissions"].values() if isinstance(allowed, dict) for right in allowed}
    for role, allowed in rights["permissions"].items():
        if isinstance(allowed, str):  # one word for all rights: "any", the administrator's, would cover the two below
            allowed = dict.fromkeys(sorted(named), allowed)
        rights["permissions"][role] = allowed | {"shell_commands": "none"} | ({} if brings_code else {"byoc": "none"})
    write_json(rules, rights)


def set_privacy(kit: Path, scopes: Mapping[str, Sequence[Mapping]], default: str | None = None) -> None:
    """Write down which jobs a site takes part in, and what it does to their results before they leave: ``local/privacy.json``.

    A job names a scope, by ``set_recipe_meta(recipe, JobMetaKey.SCOPE, "research")``; one that is not listed is refused. The
    filters run whatever the job says.
    https://nvflare.readthedocs.io/en/main/user_guide/admin_guide/security/site_policy_management.html

    Args:
        kit: of a site, in ``local/`` of which the file comes; it holds from the site's next start on.
        scopes: name → filters as FLARE writes them, in their order, for example
            ``{"path": "nvflare.app_common.filters.percentile_privacy.PercentilePrivacy", "args": {"percentile": 90}}``.
        default: scope of jobs that name none. Without, they are refused.
    """
    if not (isinstance(scopes, Mapping) and scopes and all(isinstance(name, str) and name for name in scopes)):
        raise CourseError(f"scopes is {scopes!r}; give the filters of each scope by its name, as {{'research': []}}.")
    if default not in (None, *scopes):
        raise CourseError(f"The default scope {default!r} is not listed. There are: {some_of(list(scopes))}.")
    rules = [{"name": name, "task_result_filters": [dict(one) for one in own]} for name, own in scopes.items()]
    write_json(_whole(kit) / "local" / "privacy.json", {"scopes": rules, "default_scope": default})


def audit(kit: Path, job: str | None = None) -> pd.DataFrame:
    """What FLARE noted at a server or a site for those who look later, a row an event: ``time`` by the machine's clock, ``user``,
    ``job``, ``scope``, ``action`` and ``said``; of the kit's own process, or of that of a ``job``. It tells who and when, not
    whether it did harm."""
    names = {"T": "time", "U": "user", "J": "job", "S": "scope", "A": "action", "said": "said"}
    rows = []
    for line in (Path(kit) / (job or "") / WorkspaceConstants.AUDIT_LOG).read_text().splitlines():
        tags, said = re.fullmatch(r"((?:\[[A-Z]:[^]]*\])+)(.*)", line).groups()
        rows.append(dict.fromkeys(names, "") | dict(re.findall(r"\[([A-Z]):([^]]*)\]", tags)) | {"said": said})
    table = pd.DataFrame(rows, columns=[*names]).rename(columns=names)
    return table.assign(time=pd.to_datetime(table["time"]))


def sign_anew(project_folder: Path, kit: Path, until: datetime, since: datetime | None = None) -> None:
    """Give a kit a certificate that holds at another time, for the same key, signed by the project's own root, whose key is in
    ``state/cert.json``: the file to guard most. Both times have a time zone; ``since`` is by default two days before the root's."""
    state = json.loads((project_folder / "state" / "cert.json").read_text())
    root, (file,) = load_crt_bytes(state["root_cert"].encode()), (kit / "startup").glob("*.crt")
    old, since = load_crt(str(file)), since or root.not_valid_before_utc - timedelta(days=2)
    builder = x509.CertificateBuilder(old.issuer, old.subject, old.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(since).not_valid_after(until)
    for extension in old.extensions:
        builder = builder.add_extension(extension.value, extension.critical)
    write_file(file, serialize_cert(builder.sign(load_private_key(state["root_pri_key"]), hashes.SHA256())))


def knock(kit: Path) -> str | None:
    """Shake hands with the server as a site would, by the certificate of its kit; returns None if the two trust each other.

    Else it says who refused and why, in TLS's words, and from when to when the certificates hold: an alert gives no date. FLARE's
    site stays silent where its own certificate is wrong, and ``nvflare preflight-check`` looks at none. Whether the names are
    right, FLARE looks afterwards, when the site registers. A ``CourseError`` if the kit is not whole.
    """
    startup = kit / "startup"
    try:
        target = json.loads((startup / "fed_client.json").read_text())["servers"][0]["service"]["target"]
        host, port = target.rsplit(":", 1)
        address, own = (host, int(port)), load_crt(str(startup / "client.crt"))
        context = ssl.create_default_context(cafile=startup / "rootCA.pem")
        context.load_cert_chain(startup / "client.crt", startup / "client.key")
    except (OSError, ValueError, LookupError) as error:
        raise CourseError(f"{kit} is not the whole kit of a site ({error}). Unpack it anew.") from error
    context.check_hostname = False  # as FLARE: it compares the name of the participant, and not that of the machine
    # By TLS 1.3 a site would learn whether it was let in only from the answer to its first words.
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    try:
        with socket.create_connection(address, KNOCK_SECONDS) as line, context.wrap_socket(line, server_hostname=host):
            return None
    except ssl.SSLCertVerificationError as error:
        refusal = f"the site refuses the server: {error.verify_message}"
    except ssl.SSLError as error:
        refusal = f"the server refuses the site: {(error.reason or str(error)).lower().replace('_', ' ')}"
    except OSError as error:
        return f"no connection: {error.strerror or error}"
    try:  # by TLS 1.3 the server shows its certificate before it looks at the site's
        shown = load_crt_bytes(ssl.get_server_certificate(address, timeout=KNOCK_SECONDS).encode())
    except OSError:
        return f"no FLARE server answers at {target}, but another program"
    dates = [
        f"the {whose} certificate holds from {one.not_valid_before_utc:{MINUTE}} to {one.not_valid_after_utc:{MINUTE}}"
        for whose, one in {"site's": own, "server's": shown}.items()
    ]
    now = datetime.now(timezone.utc)
    return "; ".join([refusal, *dates, f"this machine's clock says {now:{MINUTE}}"])


def use_installed_code(recipe: Recipe) -> None:
    """Carry no code of the course in the job: server and sites have installed a version that they have reviewed. Not for a recipe
    with a script, which always travels with the job."""
    job_of(recipe).set_app_packages(["src"])
