export const CONSISTENCIES = { clean: "CLEAN", filesystem: "FILESYSTEM", crash: "CRASH" } as const;
