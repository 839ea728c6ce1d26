import type { DomainLock } from "../../../../src/ports/state-store.js";
import type { ServiceContext } from "../../../../src/services/context.js";

/** Writes to the journal, the document, and what makes and moves files; or what takes no space: the removal of a record or a file. */
export type StepKind = "save" | "document" | "file" | "removal";

export type Step = <T>(kind: StepKind, action: () => Promise<T>) => Promise<T>;

/** The services on another context, of whose every write somebody is asked. What they open is in `opened`. */
export function steppedContext(
  context: ServiceContext,
  step: Step,
): { readonly context: ServiceContext; readonly opened: AsyncDisposable[]; readonly locks: DomainLock[] } {
  const { store, domainSnapshots, snapshotFiles, layers, internals } = context;
  const opened: AsyncDisposable[] = [];
  const locks: DomainLock[] = [];
  const noted = async <T extends AsyncDisposable>(opening: Promise<T>): Promise<T> => {
    const resource = await opening;
    opened.push(resource);
    return resource;
  };
  const stepped: Partial<Record<keyof typeof store, unknown>> = {
    save: (record: Parameters<typeof store.save>[0]) => step("save", () => store.save(record)),
    remove: (record: Parameters<typeof store.remove>[0]) => step("removal", () => store.remove(record)),
    lockDomain: async (...args: Parameters<typeof store.lockDomain>) => {
      const lock = await store.lockDomain(...args);
      locks.push(lock);
      return lock;
    },
  };
  return {
    opened,
    locks,
    context: {
      ...context,
      store: new Proxy(store, {
        get: (target, key) => {
          const value: unknown = Reflect.get(stepped, key) ?? Reflect.get(target, key);
          return typeof value === "function" ? (value.bind(target) as unknown) : value;
        },
      }),
      domainSnapshots: {
        read: (domain) => domainSnapshots.read(domain),
        directory: (domain) => domainSnapshots.directory(domain),
        write: (all) => step("document", () => domainSnapshots.write(all)),
      },
      snapshotFiles: {
        ...snapshotFiles,
        remove: (file) => step("removal", () => snapshotFiles.remove(file)),
        rename: (from, to) => step("file", () => snapshotFiles.rename(from, to)),
        makeDirectory: (path) => step("file", () => snapshotFiles.makeDirectory(path)),
        createOverlay: (...args) => step("file", () => snapshotFiles.createOverlay(...args)),
        copyMemory: (...args) => step("file", () => snapshotFiles.copyMemory(...args)),
        extractSnapshot: (...args) => step("file", () => snapshotFiles.extractSnapshot(...args)),
      },
      layers: { open: (...args) => noted(layers.open(...args)) },
      internals: { open: (...args) => noted(internals.open(...args)) },
    },
  };
}

/** The services of a process that stops for ever at its `at`-th write, every second time after it. */
export class MortalProcess {
  readonly context: ServiceContext;
  readonly died: Promise<void>;
  writes = 0;
  readonly #opened: readonly AsyncDisposable[];
  readonly #locks: readonly DomainLock[];

  constructor(context: ServiceContext, at: number) {
    let die: () => void = () => undefined;
    this.died = new Promise((resolve) => (die = resolve));
    const stepped = steppedContext(context, async (_, action) => {
      if (++this.writes < at) return await action();
      if (at % 2 === 1) await action();
      die();
      return await new Promise<never>(() => undefined);
    });
    this.context = stepped.context;
    this.#opened = stepped.opened;
    this.#locks = stepped.locks;
  }

  /** What the kernel does. */
  async buried(): Promise<void> {
    for (const resource of this.#opened) await resource[Symbol.asyncDispose]();
    for (const lock of this.#locks) await lock.release();
  }
}
