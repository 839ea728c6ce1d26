/** One line of the audit log, without its time. Values have no secrets. */
export type AuditEntry = Readonly<Record<string, string | number | boolean | object | undefined>>;

export interface AuditLog {
  /** Resolves once the line is on the disk. Lines keep the order of their calls. Fails with AUDIT_FAILED. */
  write(entry: AuditEntry): Promise<void>;
}
