/** Who may do what: roles, the clients of the configuration, and what belongs to whom. */

/** Each may also do what those before it may. */
export const ROLES = ["viewer", "operator", "administrator"] as const;
export type Role = (typeof ROLES)[number];

/** Who makes a call. Clients of the same name are the same owner. */
export interface Client {
  readonly name: string;
  readonly role: Role;
  /** `sha256:` and hexadecimal digits of the certificate that it shows; unset for users of the Unix socket. */
  readonly fingerprint?: string | undefined;
}

/** The name of whoever needs no certificate: users of the Unix socket and of the embedded mode. */
export const LOCAL_NAME = "local";
export const LOCAL_CLIENT: Client = { name: LOCAL_NAME, role: "administrator" };

/** A certificate that the configuration knows, by its common name or by its fingerprint. */
export interface ClientEntry extends Client {
  readonly subject?: string | undefined;
}

/** What tells a certificate from others. */
export interface CertificateFacts {
  /** The common name, if there is exactly one. */
  readonly subject: string | undefined;
  /** `sha256:` and hexadecimal digits. */
  readonly fingerprint: string;
}

/** Undefined for a certificate without an entry. A fingerprint, which can mean one certificate only, goes first. */
export function findClient(
  entries: readonly ClientEntry[],
  { subject, fingerprint }: CertificateFacts,
): Client | undefined {
  const found =
    entries.find((entry) => entry.fingerprint === fingerprint) ??
    entries.find((entry) => entry.subject !== undefined && entry.subject === subject);
  return found && { name: found.name, role: found.role, fingerprint };
}

export function permits(role: Role, needed: Role): boolean {
  return ROLES.indexOf(role) >= ROLES.indexOf(needed);
}

/** What was made before there were owners is that of `local`. */
export function ownerOf({ owner }: { readonly owner?: string }): string {
  return owner ?? LOCAL_NAME;
}

export function mayManage({ name, role }: Client, owner: string): boolean {
  return name === owner || role === "administrator";
}

/** `sha256:` and lower-case digits, from what openssl and others print; undefined for anything else. */
export function parseFingerprint(text: string): string | undefined {
  const digits = text
    .replace(/^sha256[:= ]/i, "")
    .replaceAll(":", "")
    .toLowerCase();
  return /^[0-9a-f]{64}$/.test(digits) ? `sha256:${digits}` : undefined;
}
