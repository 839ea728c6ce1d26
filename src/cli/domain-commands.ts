import type { Command } from "@commander-js/extra-typings";
import { domainDetails, domainList } from "./domain-view.js";
import { everyPage } from "./every-page.js";
import type { RunAction } from "./session.js";

export function addDomainCommands(group: Command, run: RunAction): void {
  group
    .command("list")
    .summary("list the domains of the configuration")
    .description("List the domains of the configuration and what is known of each now.")
    .action(() =>
      run(async ({ answer, api, signal, terminal }) => {
        const domains = await everyPage(
          (paging) => api.call("Domains.List", paging, { signal }),
          (page) => page.domains,
        );
        answer("ListDomainsResponse", { domains }, (list) => domainList(list, terminal));
      }),
    );

  group
    .command("show")
    .summary("show a domain and its disks")
    .description("Show a domain's state and its disks, with what would keep them from being backed up.")
    .argument("<domain>", "name of the domain in the configuration")
    .action((domain) =>
      run(async ({ answer, api, signal, terminal }) => {
        const message = await api.call("Domains.Get", { domain }, { signal });
        answer("Domain", message, (found) => domainDetails(found, terminal));
      }),
    );

  group
    .command("dumpxml")
    .summary("print a domain as XML")
    .description("Print a domain as <domain>: its disks with their checkpoints, and its exports.")
    .argument("<domain>", "name of the domain in the configuration")
    .action((domain) =>
      run(async ({ answer, api, signal }) => {
        const message = await api.call("Domains.GetXml", { domain }, { signal });
        answer("XmlDocument", message, ({ xml }) => xml);
      }),
    );
}
