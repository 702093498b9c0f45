import java.lang.management.ManagementFactory;
import java.lang.management.RuntimeMXBean;
import javax.management.remote.JMXConnector;
import javax.management.remote.JMXConnectorFactory;
import javax.management.remote.JMXServiceURL;

/** Says what a Java machine was started with, which listens at the port that is named. */
public class Monitor {
    public static void main(String[] words) throws Exception {
        JMXServiceURL url = new JMXServiceURL("service:jmx:rmi:///jndi/rmi://127.0.0.1:" + words[0] + "/jmxrmi");
        try (JMXConnector connector = JMXConnectorFactory.connect(url)) {
            RuntimeMXBean runtime = ManagementFactory.newPlatformMXBeanProxy(
                connector.getMBeanServerConnection(), ManagementFactory.RUNTIME_MXBEAN_NAME, RuntimeMXBean.class);
            System.out.println("mark=" + runtime.getSystemProperties().get("mark"));
        }
    }
}
