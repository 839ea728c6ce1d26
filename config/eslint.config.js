import { fileURLToPath } from "node:url";
import tseslint from "typescript-eslint";

const root = fileURLToPath(new URL("..", import.meta.url));

export default tseslint.config(
  {
    basePath: root,
    ignores: ["**/dist/**", "**/node_modules/**", "coverage/**", "var/**", "src/api/generated*/**"],
  },
  {
    basePath: root,
    files: ["**/*.ts"],
    extends: [tseslint.configs.strictTypeChecked],
    languageOptions: {
      parserOptions: {
        project: ["tsconfig.json", "src/nbd-client-ts/tsconfig.json", "test/tsconfig.json"],
        tsconfigRootDir: root,
      },
    },
    rules: {
      "@typescript-eslint/restrict-template-expressions": [
        "error",
        { allowNumber: true, allowBoolean: true },
      ],
      "@typescript-eslint/no-unused-vars": ["error", { argsIgnorePattern: "^_", varsIgnorePattern: "^_" }],
      "@typescript-eslint/no-confusing-void-expression": ["error", { ignoreArrowShorthand: true }],
      "@typescript-eslint/no-invalid-void-type": "off",
      "@typescript-eslint/switch-exhaustiveness-check": "error",
      "@typescript-eslint/consistent-type-imports": "error",
      "no-restricted-syntax": [
        "error",
        { selector: "TSEnumDeclaration", message: "Use a union of string literals: enums do not erase" },
        {
          selector: "ExportDefaultDeclaration",
          message: "Use named exports: one name for one thing everywhere",
        },
      ],
      eqeqeq: "error",
    },
  },
  { basePath: root, files: ["config/*.ts"], rules: { "no-restricted-syntax": "off" } },
);
